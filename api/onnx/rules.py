"""The table of translations: name of an op -> the rule that appends its nodes to the file.

A rule is a function (on, *operands, **attributes) -> the result, or a tuple of results; see `graph.Emitter`.
Every op of the op table is in `RULES`, or `REFUSED` says why no file has it.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

#: (on, *operands, **attributes) -> a term, or a tuple of them.
Rule = Callable[..., Any]

RULES: dict[str, Rule] = {}

_GRADIENT = ("computes a gradient", "a model that takes no gradient with training=False")
_LOSS = ("is a part of a loss", "a model that returns its logits")
_AUGMENTATION = ("augments images", "a model that gets them from Data.augment")
_RANDOM = ("draws random numbers", "a model that draws none with training=False")
_RANKS = ("sums over ranks", "a model that does so in training alone")
_STATISTICS = ("takes statistics of a batch", "running statistics with training=False")
_TRAINING = ("is of layers in training", "a model that is run with training=False")
_UPDATE = ("is of an optimizer", "a model without one")

#: Pattern of names of ops without a rule -> why a file can not have them, and what is expected instead.
REFUSED: dict[str, tuple[str, str]] = {
    "*_backward": _GRADIENT,
    "*_step": _UPDATE,
    "*_update": _UPDATE,
    "batch_norm": _STATISTICS,
    "blend_rows": _AUGMENTATION,
    "channel_*": _STATISTICS,
    "convolution_weight": _GRADIENT,
    "cross_entropy_rows": _LOSS,
    "dropout": _RANDOM,
    "embedding_linear": _TRAINING,
    "image_*": _AUGMENTATION,
    "mean_of_terms": _LOSS,
    "nonzero_rows": _UPDATE,
    "random_*": _RANDOM,
    "rank_sum": _RANKS,
    "rows_norm": _UPDATE,
    "sum_rows": _GRADIENT,
    "vector_norm": _UPDATE,
    "weighted_cross_entropy": _LOSS,
    "write_rows": _UPDATE,
}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Add a function to the table, under the names of ops."""

    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return add


def refused(name: str) -> tuple[str, str]:
    """Return why an op of the table without a rule has none, and what is expected instead."""
    return next(reason for pattern, reason in REFUSED.items() if fnmatch(name, pattern))
