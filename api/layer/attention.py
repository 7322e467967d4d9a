"""Multi-head attention."""

from __future__ import annotations

from typing import Any

from treepie.autodiff import Tensor, rng

from .. import fn
from ..fn.attention import attend, rotated
from ..fn.linear import check_rate
from ..init import glorot_uniform
from ..pickling import constructor
from .core import Context, Layer, Tree, Vars, check_sizes

_NAME = "layer.multi_head_attention"


@constructor
def multi_head_attention(
    embed_dim: int,
    num_heads: int,
    num_kv_heads: int | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    rope: bool = False,
    rope_theta: float = 10000.0,
) -> Layer:
    """Return self-attention over a sequence: (batch, seq, embed_dim) -> the same shape (Vaswani et al. 2017).

    num_kv_heads: heads of keys and values, by default num_heads, of which it is a divisor (Ainslie et al.
        2023).  dropout: rate for the attention's weights, in training.  is_causal: position i attends to 0
        to i.  rope: rotary position embeddings, as `fn.rope` with theta `rope_theta`.

    Parameters: q_proj (embed_dim, embed_dim), k_proj and v_proj (embed_dim, kv), out_proj (embed_dim,
    embed_dim), kv = embed_dim / num_heads * num_kv_heads. No biases. The mask of keys, (batch, seq), nonzero
    to keep, comes from the context as "attention_mask". Raises ValueError for sizes that do not divide.

    >>> import treepie as tp
    >>> model = tp.layer.multi_head_attention(8, num_heads=2, is_causal=True)
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((2, 5, 8)))[0].shape
    (2, 5, 8)
    """
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    _check_heads(embed_dim, num_heads, kv_heads, rope)
    check_rate(dropout)
    kv = embed_dim // num_heads * kv_heads

    def init(rngs: Tensor, dtype: Any) -> Vars:
        widths = {"q_proj": embed_dim, "k_proj": kv, "v_proj": kv, "out_proj": embed_dim}
        keys = rng.split(rngs, len(widths))
        shapes = {p: (embed_dim, n) for p, n in widths.items()}
        return Vars(
            {p: glorot_uniform(keys[k], s, dtype) for k, (p, s) in enumerate(shapes.items())}, {}, dtype
        )

    def apply(
        params: Tree, state: Tree, x: Tensor, *, dtype: Any, training: bool, rngs: Any, ctx: Context | None
    ) -> tuple[Tensor, Tree]:
        if x.ndim != 3 or x.shape[2] != embed_dim:
            raise ValueError(f"{_NAME}: x has shape {x.shape}, expected (batch, seq, {embed_dim})")
        rate = dropout if training else 0.0
        if rate and rngs is None:
            raise ValueError(f"{_NAME}: rngs is None, expected a key in training (rngs=tp.rng.key(0))")
        mask = None if ctx is None else ctx.get("attention_mask")
        q, k, v = (
            _heads(fn.linear(x, params[p]), heads)
            for p, heads in (("q_proj", num_heads), ("k_proj", kv_heads), ("v_proj", kv_heads))
        )
        if rope:
            q, k = (rotated(t, rope_theta, seq_first=True) for t in (q, k))
        out = attend(q, k, v, mask, is_causal, rate, rngs if rate else None, seq_first=True)
        return fn.linear(out.reshape(x.shape), params["out_proj"]), state

    return Layer(init, apply, f"multi_head_attention({embed_dim}, {num_heads})", pure=True)


def _check_heads(embed_dim: int, num_heads: int, kv_heads: int, rope: bool) -> None:
    check_sizes(_NAME, embed_dim=embed_dim, num_heads=num_heads, num_kv_heads=kv_heads)
    if embed_dim % num_heads or num_heads % kv_heads:
        raise ValueError(
            f"{_NAME}: embed_dim is {embed_dim}, num_heads {num_heads} and num_kv_heads {kv_heads}, expected "
            "each a multiple of the next"
        )
    if rope and embed_dim // num_heads % 2:
        raise ValueError(f"{_NAME}: a head is {embed_dim // num_heads} wide, expected an even width for rope")


def _heads(x: Tensor, heads: int) -> Tensor:
    """Split the last axis: (batch, seq, heads d) -> (batch, seq, heads, d), a view."""
    return x.reshape((*x.shape[:2], heads, x.shape[2] // heads))
