"""The embedding layer."""

from __future__ import annotations

from .. import fn, init as initializers
from ..pickling import constructor
from .core import Layer, check_sizes, parametric


@constructor
def embedding(vocab_size: int, embed_dim: int, scale: bool = True) -> Layer:
    """Return the layer `fn.embedding`: integers (...) in [0, vocab_size) to (..., embed_dim).

    scale: multiply by sqrt(embed_dim).

    Parameters: embedding (vocab_size, embed_dim), at first normal with a standard deviation of
    1 / sqrt(embed_dim) with `scale`, so that results have variance 1, and 0.02 without (as GPT-2).

    >>> import treepie as tp
    >>> model = tp.layer.embedding(100, 8)
    >>> model.apply(model.init(tp.rng.key(0)), [[1, 2, 3]])[0].shape
    (1, 3, 8)
    """
    check_sizes("layer.embedding", vocab_size=vocab_size, embed_dim=embed_dim)
    initializer = initializers.normal(embed_dim**-0.5 if scale else 0.02)

    return parametric(
        f"embedding({vocab_size}, {embed_dim})",
        lambda rngs, dtype: {"embedding": initializer(rngs, (vocab_size, embed_dim), dtype)},
        lambda p, x: fn.embedding(x, p["embedding"], scale),
    )
