"""Embeddings of positions."""

from __future__ import annotations

import functools
from typing import Any, Literal, get_args

import numpy as np

from treepie.autodiff import Tensor

from ..init import normal
from ..pickling import constructor
from .core import Layer, Tree, check_sizes, parametric

Kind = Literal["learned", "sinusoidal"]


@constructor
def positional(max_length: int, embed_dim: int, kind: Kind = "learned") -> Layer:
    """Return the layer that adds an embedding of each position: (batch, seq, embed_dim) -> the same shape.

    max_length: the largest seq, else ValueError.
    kind: "learned", or "sinusoidal": element 2 i of position p is sin(p / 10000 ** (2 i / embed_dim)), and
        element 2 i + 1 the cosine (Vaswani et al. 2017, section 3.5), without parameters.

    Parameters: embedding (max_length, embed_dim), normal with a standard deviation of 0.02 (as GPT-2).

    >>> import treepie as tp
    >>> model = tp.layer.positional(100, 4, kind="sinusoidal")
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((1, 2, 4)))[0].tolist()[0][0]
    [0.0, 1.0, 0.0, 1.0]
    """
    name = "layer.positional"
    check_sizes(name, max_length=max_length, embed_dim=embed_dim)
    if kind not in get_args(Kind):
        raise ValueError(f"{name}: kind is {kind!r}, expected 'learned' or 'sinusoidal'")
    learned = kind == "learned"

    def params(rngs: Tensor, dtype: Any) -> dict[str, Tensor]:
        return {"embedding": normal(0.02)(rngs, (max_length, embed_dim), dtype)} if learned else {}

    def function(params: Tree, x: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[2] != embed_dim or x.shape[1] > max_length:
            raise ValueError(
                f"{name}: x has shape {x.shape}, "
                f"expected (batch, seq, {embed_dim}) with at most {max_length} positions"
            )
        steps = x.shape[1]
        return x + (params["embedding"][:steps] if learned else _sinusoids(steps, embed_dim, x.dtype))

    return parametric(f"positional({max_length}, {embed_dim}, {kind})", params, function)


@functools.lru_cache(maxsize=64)
def _sinusoids(steps: int, dim: int, dtype: np.dtype) -> Tensor:
    """Return (steps, dim), computed in float64."""
    angles = np.arange(steps)[:, None] / 10000.0 ** (np.arange(dim) // 2 * 2 / dim)
    return Tensor(np.where(np.arange(dim) % 2, np.cos(angles), np.sin(angles)).astype(dtype), None)
