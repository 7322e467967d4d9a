"""The embedding layer."""

from __future__ import annotations

from typing import Any

from treepie.autodiff import Tensor
from treepie.autodiff.arguments import integer

from .. import fn, init as initializers
from ..pickling import constructor
from .core import Layer, Tree, Vars


@constructor
def embedding(vocab_size: int, embed_dim: int, scale: bool = True) -> Layer:
    """Return the layer `fn.embedding`: integers (...) in [0, vocab_size) to (..., embed_dim).

    scale: multiply by sqrt(embed_dim).
    Parameters: embedding (vocab_size, embed_dim), at first normal with a standard deviation of
    1 / sqrt(embed_dim) with `scale`, so that results have variance 1, and 0.02 without (as GPT-2).
    """
    sizes = {"vocab_size": vocab_size, "embed_dim": embed_dim}
    for argument, size in sizes.items():
        if integer("layer.embedding", argument, size) < 1:
            raise ValueError(f"layer.embedding: {argument} is {size}, expected at least 1")
    initializer = initializers.normal(embed_dim**-0.5 if scale else 0.02)

    def init(rngs: Tensor, dtype: Any) -> Vars:
        return Vars({"embedding": initializer(rngs, (vocab_size, embed_dim), dtype)}, {}, dtype)

    def apply(
        params: Tree, state: Tree, x: Tensor, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Tensor, Tree]:
        return fn.embedding(x, params["embedding"], scale), state

    return Layer(init, apply, f"embedding({vocab_size}, {embed_dim})", pure=True)
