"""The embedding layer."""

from __future__ import annotations

import math

from .. import fn, init as initializers
from ..optim.sparse import NAME as SPARSE
from ..pickling import constructor
from .core import Layer, check_sizes, parametric


@constructor
def embedding(vocab_size: int, embed_dim: int, scale: bool = True, sparse: bool = False) -> Layer:
    """Return the layer `fn.embedding`: integers (...) in [0, vocab_size) to (..., embed_dim).

    scale: multiply by sqrt(embed_dim).
    sparse: let a training step update only the rows that are touched: whose gradient is not zero in all
        elements. Other rows cost nothing, in time or memory, so that the table may be large. Optimizers that
        support it, without weight decay of the table: `sgd` without momentum and `adagrad`, whose updates are
        those of a dense table; `adam` and `adamw`, which become lazy: the moments of a row that is not
        touched do not decay, and do not move it, as in PyTorch's SparseAdam. In a `chain`, `clip_norm` and
        `clip_value` may precede them. Others raise ValueError in `Trainer.init` and `Optimizer.init`.

    Parameters: embedding (vocab_size, embed_dim), with `sparse` named sparse_embedding; at first normal with
    a standard deviation of 1 / sqrt(embed_dim) with `scale`, so that results have variance 1, and 0.02
    without (as GPT-2).

    A sparse table may be looked up several times in a model. `Trainer.fit` updates it in place, unless a
    callback keeps the state. Elsewhere results are the same, at a cost in proportion to the table: in
    `Trainer.step`, which copies it, since the earlier state stays valid; where a model uses the table in
    another way, as in a product or a penalty; and with several ranks, micro-shards or accumulated gradients,
    whose sums are dense. Ranks do not share the optimizer's state then (`shard_optimizer`).

    >>> import treepie as tp
    >>> model = tp.layer.embedding(100, 8)
    >>> model.apply(model.init(tp.rng.key(0)), [[1, 2, 3]])[0].shape
    (1, 3, 8)
    >>> items = tp.layer.sequential([tp.layer.embedding(1000, 8, sparse=True), tp.layer.linear(8, 1)])
    >>> st = tp.Trainer(items, tp.optim.adam(1e-3)).init(rngs=tp.rng.key(0))
    >>> [path for path, _ in tp.ptree.flatten_with_paths(st.vars.params)][0]
    '0.sparse_embedding'
    """
    check_sizes("layer.embedding", vocab_size=vocab_size, embed_dim=embed_dim)
    initializer = initializers.normal(embed_dim**-0.5 if scale else 0.02)

    name = SPARSE if sparse else "embedding"

    layer = parametric(
        f"embedding({vocab_size}, {embed_dim}{', sparse=True' * bool(sparse)})",
        lambda rngs, dtype: {name: initializer(rngs, (vocab_size, embed_dim), dtype)},
        lambda p, x: fn.embedding(x, p[name], scale),
    )
    if not sparse:  # whose gradient has the rows of tokens alone
        layer.table = lambda p: p[name] * math.sqrt(embed_dim) if scale else p[name]
    return layer
