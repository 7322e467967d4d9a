"""Blocks of transformers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast, get_args

from treepie.autodiff import Tensor

from .. import fn
from ..fn.linear import Activation
from ..pickling import constructor
from .attention import multi_head_attention
from .basic import dropout as dropout_layer, linear
from .core import Layer, check_sizes
from .model import Call, assemble
from .norm import layer_norm


@constructor
def transformer_encoder(
    embed_dim: int,
    num_heads: int,
    hidden_dim: int | None = None,
    dropout: float = 0.0,
    activation: Activation = "gelu",
    norm_first: bool = True,
    is_causal: bool = False,
    bias: bool = True,
    rope: bool = False,
    eps: float = 1e-5,
) -> Layer:
    """Return an encoder's block: self-attention and two linear layers, (batch, seq, embed_dim) -> the same.

        x = x + attention(norm1(x));  x = x + linear2(activation(linear1(norm2(x))))

    num_heads: a divisor of embed_dim.  hidden_dim: outputs of linear1, by default 4 embed_dim.
    dropout: rate, in training, for the attention's weights, for the activation's result and for each term
        that is added to x.
    activation: "relu", "tanh", "sigmoid", "gelu" or "silu".
    norm_first: False normalizes sums instead, norm1(x + attention(x)), as Vaswani et al. 2017; True is easier
        to train in depth (Xiong et al. 2020).
    is_causal: position i attends to 0 to i, as in GPT.  rope: rotary position embeddings.
    bias: whether linear layers and attention have biases.  eps: of the norms, as for `layer_norm`.

    Parameters: self_attention (as `multi_head_attention`), linear1, linear2, norm1, norm2. The mask of keys
    is the context's "attention_mask". PyTorch's `TransformerEncoderLayer` has the same parts; its
    `in_proj_weight` is the transpose of q_proj, k_proj and v_proj, concatenated.

    A model of n blocks is `sequential` of n of them, with a `layer_norm` at the end if norm_first.

    >>> import treepie as tp
    >>> blocks = [tp.layer.transformer_encoder(8, num_heads=2, dropout=0.1) for _ in range(3)]
    >>> model = tp.layer.sequential([*blocks, tp.layer.layer_norm(8)])
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((2, 5, 8)))[0].shape
    (2, 5, 8)
    """
    name = "layer.transformer_encoder"
    block = _Block(activation, dropout > 0, norm_first)
    self_attention = {"is_causal": is_causal, "rope": rope}
    parts = _parts(name, embed_dim, num_heads, hidden_dim, dropout, activation, bias, eps, self_attention)

    def forward(call: Call, x: Tensor) -> Tensor:
        x = block.add(call, "norm1", x, call.self_attention)
        return block.add(call, "norm2", x, functools.partial(block.feed_forward, call))

    return assemble(f"transformer_encoder({embed_dim}, {num_heads})", parts, forward)


@constructor
def transformer_decoder(
    embed_dim: int,
    num_heads: int,
    hidden_dim: int | None = None,
    dropout: float = 0.0,
    activation: Activation = "gelu",
    norm_first: bool = True,
    is_causal: bool = True,
    bias: bool = True,
    rope: bool = False,
    eps: float = 1e-5,
) -> Layer:
    """Return a decoder's block: self-attention, attention to an encoder's output, and two linear layers.

        x = x + self_attention(norm1(x));  x = x + cross_attention(norm2(x), memory)
        x = x + linear2(activation(linear1(norm3(x))))

    Input: a tuple (x, memory), or x alone with the memory as "memory" in the context, so that several blocks
    may be in a `sequential`. x: (batch, seq, embed_dim).  memory: (batch, seq_memory, embed_dim).  The output
    has the shape of x.

    Arguments are as for `transformer_encoder`; is_causal and rope are those of self-attention.

    Parameters: self_attention and cross_attention (as `multi_head_attention`), linear1, linear2, norm1,
    norm2, norm3. Masks of keys in the context: "attention_mask" for x, "memory_mask" for the memory. A
    decoder without a memory, as in GPT, is `transformer_encoder` with is_causal=True.

    Raises ValueError where there is no memory.

    >>> import treepie as tp
    >>> model = tp.layer.sequential([tp.layer.transformer_decoder(8, num_heads=2) for _ in range(3)])
    >>> ctx = tp.Context().set("memory", tp.zeros((2, 7, 8)))
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((2, 5, 8)), ctx=ctx)[0].shape
    (2, 5, 8)
    """
    name = "layer.transformer_decoder"
    block = _Block(activation, dropout > 0, norm_first)
    attentions: tuple[dict[str, bool], ...] = ({"is_causal": is_causal, "rope": rope}, {})
    parts = _parts(name, embed_dim, num_heads, hidden_dim, dropout, activation, bias, eps, *attentions)

    def forward(call: Call, x: Any) -> Tensor:
        memory = None if call.ctx is None else call.ctx.get("memory")
        y, memory = x if isinstance(x, tuple) and len(x) == 2 else (x, memory)
        if memory is None or isinstance(y, tuple):
            raise ValueError(
                f"{name}: there is no memory, expected a tuple (x, memory) or "
                "ctx=tp.Context().set('memory', ...)"
            )
        y = block.add(call, "norm1", y, call.self_attention)
        y = block.add(call, "norm2", y, lambda q: call.cross_attention((q, memory)))
        return block.add(call, "norm3", y, functools.partial(block.feed_forward, call))

    return assemble(f"transformer_decoder({embed_dim}, {num_heads})", parts, forward)


def _parts(
    name: str,
    embed_dim: int,
    num_heads: int,
    hidden_dim: int | None,
    dropout: float,
    activation: str,
    bias: bool,
    eps: float,
    *attentions: dict[str, bool],
) -> dict[str, Layer]:
    """Return the layers of a block, after a check of the arguments.

    attentions: options of self-attention, then of cross-attention, if there is one.
    """
    hidden = 4 * embed_dim if hidden_dim is None else hidden_dim
    check_sizes(name, embed_dim=embed_dim, num_heads=num_heads)
    if activation not in get_args(Activation):
        names = ", ".join(map(repr, get_args(Activation)))
        raise ValueError(f"{name}: activation is {activation!r}, expected one of {names}")
    check_sizes(name, hidden_dim=hidden)
    rows = zip(("self_attention", "cross_attention"), attentions, strict=False)
    return {
        **{
            part: multi_head_attention(embed_dim, num_heads, dropout=dropout, bias=bias, **options)
            for part, options in rows
        },
        **{f"norm{k + 1}": layer_norm(embed_dim, eps) for k in range(len(attentions) + 1)},
        "linear1": linear(embed_dim, hidden, bias),
        "linear2": linear(hidden, embed_dim, bias),
        "dropout": dropout_layer(dropout),
    }


@dataclass(frozen=True)
class _Block:
    """What encoders and decoders have in common."""

    activation: Activation
    dropout: bool
    norm_first: bool

    def add(self, call: Call, norm: str, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return x plus a function of it, normalized before the function or after the sum."""
        if self.norm_first:
            return x + self.drop(call, function(call[norm](x)))
        return cast(Tensor, call[norm](x + self.drop(call, function(x))))

    def feed_forward(self, call: Call, x: Tensor) -> Tensor:
        """Return the two linear layers of x."""
        hidden = getattr(fn, self.activation)(call.linear1(x))
        return cast(Tensor, call.linear2(self.drop(call, hidden)))

    def drop(self, call: Call, x: Tensor) -> Tensor:
        """Return x after dropout."""
        return call.dropout(x) if self.dropout else x
