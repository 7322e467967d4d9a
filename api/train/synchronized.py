"""Whether a model sums over ranks while it runs, so that all ranks have to run it at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from treepie.autodiff import Tensor, ptree
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.trace import active
from treepie.autodiff.trace.entry import root
from treepie.autodiff.trace.trace import Trace

from ..layer import Layer, Vars
from ..layer.core import inputs as as_inputs
from .inputs import StepInputs
from .plan import ValueRead


def sums_over_ranks(model: Layer, inputs: StepInputs, x: Any) -> bool:
    """Whether a model sums over ranks in training; False for one that reads values, which cannot be told.

    x: an input, which may have no rows. The model is traced on two rows, without running an op.
    """
    trace = Trace(root(), user=False, refuse=ValueRead)
    trace.entries = []

    def symbolic(leaf: Any) -> Tensor:
        t = as_tensor(leaf)
        return Tensor(trace.symbol((2, *t.shape[1:]), t.dtype), None)

    def run() -> None:
        at = inputs.at
        vars = Vars(at.buffers.trees()[0], inputs.state, at.dtype)
        key = None if inputs.key is None else Tensor(np.zeros(2, np.int64), None)
        model.apply(vars, ptree.map(symbolic, as_inputs(x)), True, key, inputs.ctx)

    try:
        active.call_under(trace, run)
        return any(getattr(entry.op, "effect", False) for entry in trace.entries)
    except ValueRead:
        return False
    finally:
        trace.end()
