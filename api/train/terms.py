"""Losses that are means over counted or weighted terms, such as cross-entropy with `ignore_index`.

A part of a batch counts by its number of terms, or by the sum of their weights, not by examples: the mean
over the batch is the sum of the parts' means, each times this number, over the sum of these numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from treepie.autodiff import Tensor
from treepie.autodiff.program.call import PureCall
from treepie.autodiff.table import OPS
from treepie.autodiff.tape import Node
from treepie.autodiff.trace.entry import Entry


def terms_of(loss: Tensor) -> Tensor | None:
    """Return the number of terms of a loss, or the sum of their weights; None where shapes determine it.

    Raises ValueError for a loss that combines such a mean with something else.
    """
    last = _producer(loss)
    if last is not None and last.op is OPS["mean_of_terms"]:
        return last.inputs[1]
    if any(node.op is OPS["mean_of_terms"] for node in _ancestors(last)):
        raise ValueError(
            "Trainer.fit: the loss combines a mean over the targets that are not ignored with other terms, "
            "or a weighted mean, expected that mean alone: a part of a batch (accumulate_steps, micro_shards "
            "or ranks) is weighed by its number of targets, or by the sum of its weights"
        )
    return None


def unchecked(entries: Sequence[Any], number: int) -> list[Any]:
    """Return entries where the value with a number may be 0: a part of a batch may have no terms."""
    rows = list(entries)
    for k, entry in enumerate(rows):
        if isinstance(entry, Entry) and entry.op is OPS["check_range"] and entry.first == number:
            attributes = {**entry.attributes, "low": 0.0}
            rows[k] = Entry(None, entry.op, entry.inputs, attributes, entry.first, entry.outputs)
    return rows


def _producer(x: Tensor) -> Node | None:
    """Return the call of an op that has computed a tensor, inside of pure functions too."""
    while x.node is not None and isinstance(x.node.op, PureCall):
        assert x.node.op.results is not None
        x = x.node.op.results[x.output]
    return x.node


def _ancestors(last: Node | None) -> list[Node]:
    """Return the calls that a node depends on, and itself."""
    visited: dict[int, Node] = {}
    stack = [last]
    while stack:
        node = stack.pop()
        if node is not None and id(node) not in visited:
            visited[id(node)] = node
            stack += [_producer(t) for t in node.inputs]
    return list(visited.values())
