"""A range check of values inside of a step: the kernel reports the error, in compiled programs too."""

from typing import Any

import numpy as np

from treepie.kernels.check import within
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_float, as_tensor
from ..table import Attributes, Case, op
from ..tensor import Tensor, TensorLike

_ANY: Attributes = {"low": -4.0, "high": 4.0, "message": "a value is {}", "finite": False}


def _plan(inputs: list[Operand], outputs: list[Operand], scratch: Any, **attributes: Any) -> list[Launch]:
    return [within(inputs[0], outputs[0], attributes["low"], attributes["high"], attributes["finite"])]


def _error(x: Tensor, low: float, high: float, message: str, finite: bool) -> Exception:
    wrong = x.array[(x.array < low) | (x.array > high) | (finite & np.isnan(x.array))]
    return (FloatingPointError if finite else ValueError)(message.format(wrong.flat[0]))


@op(
    signature="(...)->(...)",
    infer=lambda x, **attributes: [Spec(x.shape, x.dtype)],
    plan=_plan,
    failure=_error,
    checked=lambda x, low, high, **attributes: [(0, low, high)],
    vjp=lambda g, y, x, **attributes: g,
    oracle=lambda x, **attributes: np.asarray(x),
    cases=[Case(s, _ANY) for s in (((3, 5),), ((),), ((0, 3),), ((40000,),))],
    large=Case(((1000, 1000),), _ANY),
    dtypes=("float32", "float64", "int32", "int64"),
    ulp=0,
)
def check_range(
    x: TensorLike, low: float, high: float, message: str, finite: bool = False
) -> tuple[tuple[Tensor, ...], Attributes]:
    """Return x; ValueError(message.format(element)) for an element outside [low, high], which NaN is not.

    x: floats or integers.  finite: refuse NaN too, and raise FloatingPointError.
    """
    t = as_tensor(x)
    attributes = {"low": float(low), "high": float(high), "message": message, "finite": bool(finite)}
    return (t if t.dtype.kind == "i" else as_float("check_range", t),), attributes
