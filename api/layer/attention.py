"""Multi-head attention."""

from __future__ import annotations

from typing import Any

from treepie.autodiff import Tensor, rng, zeros

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
    bias: bool = False,
) -> Layer:
    """Return attention over a sequence: (batch, seq, embed_dim) -> the same shape (Vaswani et al. 2017).

    Input: x, for self-attention; or a tuple (x, memory), for attention of x to the memory (batch, seq_memory,
    embed_dim), an encoder's output, without is_causal and rope.

    num_kv_heads: heads of keys and values, by default num_heads, of which it is a divisor (Ainslie et al.
        2023).  dropout: rate for the attention's weights, in training.  is_causal: position i attends to 0
        to i.  rope: rotary position embeddings, as `fn.rope` with theta `rope_theta`.  bias: whether there
        are biases.

    Parameters: q_proj (embed_dim, embed_dim), k_proj and v_proj (embed_dim, kv), out_proj (embed_dim,
    embed_dim), kv = embed_dim / num_heads * num_kv_heads; with `bias`, q_bias, k_bias, v_bias and out_bias,
    zeros at first. The mask of keys, (batch, seq), nonzero to keep, comes from the context as
    "attention_mask", that of a memory as "memory_mask". Raises ValueError for sizes that do not divide.

    >>> import treepie as tp
    >>> model = tp.layer.multi_head_attention(8, num_heads=2, is_causal=True)
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((2, 5, 8)))[0].shape
    (2, 5, 8)
    """
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    _check_heads(embed_dim, num_heads, kv_heads, rope)
    check_rate(dropout)
    kv = embed_dim // num_heads * kv_heads

    widths = {"q": embed_dim, "k": kv, "v": kv, "out": embed_dim}

    def init(rngs: Tensor, dtype: Any) -> Vars:
        keys = rng.split(rngs, len(widths))
        weights = {
            f"{p}_proj": glorot_uniform(keys[k], (embed_dim, n), dtype)
            for k, (p, n) in enumerate(widths.items())
        }
        biases = {f"{p}_bias": zeros((n,), dtype) for p, n in widths.items()} if bias else {}
        return Vars({**weights, **biases}, {}, dtype)

    def project(params: Tree, part: str, x: Tensor) -> Tensor:
        return fn.linear(x, params[f"{part}_proj"], params[f"{part}_bias"] if bias else None)

    def apply(
        params: Tree, state: Tree, x: Any, *, dtype: Any, training: bool, rngs: Any, ctx: Context | None
    ) -> tuple[Tensor, Tree]:
        across = isinstance(x, tuple)
        query, source = _operands(x, embed_dim, is_causal or rope)
        rate = dropout if training else 0.0
        if rate and rngs is None:
            raise ValueError(f"{_NAME}: rngs is None, expected a key in training (rngs=tp.rng.key(0))")
        mask = None if ctx is None else ctx.get("memory_mask" if across else "attention_mask")
        q = _heads(project(params, "q", query), num_heads)
        k, v = (_heads(project(params, part, source), kv_heads) for part in ("k", "v"))
        if rope:
            q, k = (rotated(t, rope_theta, seq_first=True) for t in (q, k))
        out = attend(q, k, v, mask, is_causal, rate, rngs if rate else None, seq_first=True)
        return project(params, "out", out.reshape(query.shape)), state

    return Layer(init, apply, f"multi_head_attention({embed_dim}, {num_heads})", pure=True)


def _operands(x: Any, embed_dim: int, within: bool) -> tuple[Tensor, Tensor]:
    """Return the tensors that queries and keys are computed from.

    within: whether options are set that only attention within a sequence has.
    """
    query, source = x if isinstance(x, tuple) and len(x) == 2 else (x, x)
    for argument, t in (("x", query), ("memory", source)):
        if not isinstance(t, Tensor) or t.ndim != 3 or t.shape[2] != embed_dim:
            shape = getattr(t, "shape", type(t).__name__)
            raise ValueError(f"{_NAME}: {argument} has shape {shape}, expected (batch, seq, {embed_dim})")
    if isinstance(x, tuple):
        if within:
            raise ValueError(f"{_NAME}: is_causal or rope is True, expected neither for a tuple (x, memory)")
        if query.shape[0] != source.shape[0]:
            raise ValueError(
                f"{_NAME}: x has shape {query.shape} and memory {source.shape}, expected the same batch"
            )
    return query, source


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
