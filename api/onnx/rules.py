"""The table of translations: name of an op -> the rule that appends its nodes to the file.

A rule is a function (on, *operands, **attributes) -> the result, or a tuple of results. See `graph.Emitter`.
Every op of the op table is here, or in `REFUSED` with the reason why a file can not have it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: (on, *operands, **attributes) -> a term, or a tuple of them.
Rule = Callable[..., Any]

RULES: dict[str, Rule] = {}

_RANDOM = ("draws random numbers", "a model that draws none with training=False")
_GRADIENT = ("computes a gradient", "a model that takes no gradient with training=False")
_LOSS = ("is of a loss", "a model that returns its logits")
_UPDATE = ("is an optimizer's update", "a model alone")
_TRAINING = ("normalizes by the statistics of a batch", "running statistics with training=False")
_RANKS = ("adds up values of several ranks", "a model that does so in training alone")

#: Name of an op, or a prefix of names that ends with "*" -> why it has no translation, and what is expected.
REFUSED: dict[str, tuple[str, str]] = {
    "random_*": _RANDOM,
    "dropout": _RANDOM,
    **dict.fromkeys(
        ("attention_backward", "batch_norm_backward", "cross_entropy_backward", "gru_backward"), _GRADIENT
    ),
    **dict.fromkeys(
        ("log_softmax_backward", "lstm_backward", "max_pool_backward", "normalize_backward"), _GRADIENT
    ),
    **dict.fromkeys(
        ("softmax_backward", "weighted_cross_entropy_backward", "convolution_weight"), _GRADIENT
    ),
    **dict.fromkeys(("cross_entropy_rows", "weighted_cross_entropy", "mean_of_terms"), _LOSS),
    **dict.fromkeys(("vector_norm",), _UPDATE),
    **{f"{name}_*": _UPDATE for name in ("sgd", "momentum", "nesterov", "adam", "rmsprop", "adagrad")},
    **{f"{name}_*": _UPDATE for name in ("nadam", "lion")},
    **dict.fromkeys(("batch_norm", "channel_moments", "channel_products", "channel_affine"), _TRAINING),
    "rank_sum": _RANKS,
}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Add a function to the table, under the names of ops."""

    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return add


def refused(name: str) -> tuple[str, str] | None:
    """Return why an op has no translation and what is expected, or None for one that has."""
    for pattern, reason in REFUSED.items():
        if name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1])):
            return reason
    return None
