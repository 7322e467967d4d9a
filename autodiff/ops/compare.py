"""Comparisons and logic, element by element. Results are bools, and carry no gradient."""

from typing import Any

import numpy as np

from treepie.kernels import vector

from ..elementwise import elementwise


@elementwise(oracle=np.equal, nondifferentiable=True, result="bool")
def equal(a: Any, b: Any) -> Any:
    """Whether a == b; NaN equals nothing."""
    return a == b


@elementwise(oracle=np.not_equal, nondifferentiable=True, result="bool")
def not_equal(a: Any, b: Any) -> Any:
    """Whether a != b; NaN differs from everything."""
    return a != b


@elementwise(oracle=np.less, nondifferentiable=True, result="bool")
def less(a: Any, b: Any) -> Any:
    """Whether a < b."""
    return a < b


@elementwise(oracle=np.less_equal, nondifferentiable=True, result="bool")
def less_equal(a: Any, b: Any) -> Any:
    """Whether a <= b."""
    return a <= b


@elementwise(oracle=np.greater, nondifferentiable=True, result="bool")
def greater(a: Any, b: Any) -> Any:
    """Whether a > b."""
    return a > b


@elementwise(oracle=np.greater_equal, nondifferentiable=True, result="bool")
def greater_equal(a: Any, b: Any) -> Any:
    """Whether a >= b."""
    return a >= b


@elementwise(oracle=np.isnan, nondifferentiable=True, result="bool", accepts="float")
def isnan(x: Any) -> Any:
    """Whether each element is NaN."""
    return x != x


@elementwise(oracle=np.isfinite, nondifferentiable=True, result="bool", accepts="float")
def isfinite(x: Any) -> Any:
    """Whether each element is neither infinite nor NaN."""
    return vector.fabs(x) < float("inf")


@elementwise(oracle=np.logical_and, nondifferentiable=True, accepts="bool", dtypes=("bool",))
def logical_and(a: Any, b: Any) -> Any:
    """Whether both bools are true."""
    return a & b


@elementwise(oracle=np.logical_or, nondifferentiable=True, accepts="bool", dtypes=("bool",))
def logical_or(a: Any, b: Any) -> Any:
    """Whether either bool is true."""
    return a | b


@elementwise(oracle=np.logical_not, nondifferentiable=True, accepts="bool", dtypes=("bool",))
def logical_not(x: Any) -> Any:
    """Whether a bool is false."""
    return ~x
