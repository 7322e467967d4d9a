"""Attention and rotary embeddings, as functions of tensors."""

from __future__ import annotations

import functools
import math

import numpy as np

from treepie.autodiff import Tensor, ops, zeros
from treepie.autodiff.arguments import as_float, as_tensor, integer
from treepie.autodiff.tensor import TensorLike, int64

from .linear import check_rate


def dot_product_attention(
    q: TensorLike,
    k: TensorLike,
    v: TensorLike,
    mask: TensorLike | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
    rngs: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Return softmax(scale q k') v, (batch, heads, seq_q, d_v), without storing the matrix of scores.

    q: (batch, heads, seq_q, d).  k: (batch, kv_heads, seq_k, d).  v: (batch, kv_heads, seq_k, d_v). Groups
        of heads / kv_heads heads share a head of k and v.
    mask: bool or integer, (batch, seq_k) or broadcasts to (batch, heads, seq_q, seq_k); nonzero keeps.
    is_causal: query i attends to keys 0 to i.  The result of a query that attends to no key is 0.
    dropout: rate at which weights are set to 0, as by `dropout` with the key `rngs`.
    scale: by default 1 / sqrt(d).

    Raises ValueError for shapes that do not fit, and for a dropout without a key. Vaswani et al. 2017;
    computed by blocks as in Dao et al. 2022.

    >>> import treepie as tp
    >>> q = tp.zeros((1, 2, 3, 4))
    >>> tp.fn.dot_product_attention(q, q, q, is_causal=True).shape
    (1, 2, 3, 4)
    """
    return attend(q, k, v, mask, is_causal, dropout, rngs, scale)


def attend(
    q: TensorLike,
    k: TensorLike,
    v: TensorLike,
    mask: TensorLike | None,
    is_causal: bool,
    dropout: float,
    rngs: Tensor | None,
    scale: float | None = None,
    seq_first: bool = False,
) -> Tensor:
    """Return `dot_product_attention`; with `seq_first` q, k, v and the result are (batch, seq, heads, d)."""
    name = "dot_product_attention"
    check_rate(dropout)
    if dropout and rngs is None:
        raise ValueError(f"{name}: rngs is None, expected a key for dropout (rngs=tp.rng.key(0))")
    query = as_float(name, q)
    kept = zeros((0,), dtype=int64) if mask is None else as_tensor(mask)
    if mask is not None and kept.size == 0:  # the op takes an empty mask for none
        raise ValueError(f"{name}: mask has shape {kept.shape}, expected (batch, seq_k) or 4 axes")
    if kept.ndim == 2:
        kept = kept.reshape((kept.shape[0], 1, 1, kept.shape[1]))
    key = zeros((2,), dtype=int64) if rngs is None else rngs
    factor = 1 / math.sqrt(max(1, query.shape[-1] if query.ndim else 1)) if scale is None else float(scale)
    return ops.attention(
        query, k, v, kept, key, scale=factor, is_causal=is_causal, dropout=dropout, seq_first=seq_first
    )[0]


def rope(x: TensorLike, theta: float = 10000.0, offset: int = 0) -> Tensor:
    """Return x with rotary position embeddings (Su et al. 2021); positions are on the axis before the last.

    x: (..., seq, d), d even. Elements k and k + d/2 are a pair (as for LLaMA in Hugging Face's weights, not
        neighbours), rotated at position p by the angle p * theta ** (-2 k / d).
    theta: above 0.  offset: position of the first row.

    Raises ValueError for an odd d and for a theta that is not positive.

    >>> import treepie as tp
    >>> tp.fn.rope([[1.0, 0.0], [1.0, 0.0]]).tolist()[0]
    [1.0, 0.0]
    """
    return rotated(x, theta, offset)


def rotated(x: TensorLike, theta: float, offset: int = 0, seq_first: bool = False) -> Tensor:
    """Return `rope` of x; with `seq_first` x is (..., seq, heads, d)."""
    t, axis = as_float("rope", x), -3 if seq_first else -2
    if t.ndim < 2 or t.shape[-1] < 2 or t.shape[-1] % 2:
        raise ValueError(f"rope: x has shape {t.shape}, expected (..., seq, d) with an even d")
    if not theta > 0:
        raise ValueError(f"rope: theta is {theta}, expected a positive number")
    cos, sin = _angles(t.shape[axis], t.shape[-1], float(theta), integer("rope", "offset", offset), t.dtype)
    return ops.rope(t, cos, sin, seq_first=seq_first)


@functools.lru_cache(maxsize=64)
def _angles(steps: int, d: int, theta: float, offset: int, dtype: np.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and sin (steps, d/2), computed in float64."""
    speed = theta ** (-2.0 * np.arange(d // 2) / d)
    angles = np.arange(offset, offset + steps, dtype=np.float64)[:, None] * speed
    return Tensor(np.cos(angles).astype(dtype), None), Tensor(np.sin(angles).astype(dtype), None)
