"""Comparisons and logic, element by element. Results are bools, and carry no gradient."""

from typing import Any

import numpy as np

from treepie.kernels import vector

from ..elementwise import elementwise


@elementwise(oracle=np.equal, nondifferentiable=True, result="bool")
def equal(a: Any, b: Any) -> Any:
    """Return whether a == b, element by element; NaN equals nothing.

    a, b: numbers or tensors that broadcast. The result is bool.

    Raises ValueError for shapes that do not broadcast.

    >>> import treepie as tp
    >>> tp.equal(tp.tensor([1, 2]), 2).tolist()
    [False, True]
    """
    return a == b


@elementwise(oracle=np.not_equal, nondifferentiable=True, result="bool")
def not_equal(a: Any, b: Any) -> Any:
    """Return whether a != b, element by element; NaN differs from everything.

    a, b: numbers or tensors that broadcast. The result is bool.

    Raises ValueError for shapes that do not broadcast.

    >>> import treepie as tp
    >>> tp.not_equal(tp.tensor([1, 2]), 2).tolist()
    [True, False]
    """
    return a != b


@elementwise(oracle=np.less, nondifferentiable=True, result="bool")
def less(a: Any, b: Any) -> Any:
    """Return whether a < b, element by element.

    a, b: numbers or tensors that broadcast. The result is bool, False where either is NaN.

    Raises ValueError for shapes that do not broadcast.

    >>> import treepie as tp
    >>> tp.less(tp.tensor([1, 2]), 2).tolist()
    [True, False]
    """
    return a < b


@elementwise(oracle=np.less_equal, nondifferentiable=True, result="bool")
def less_equal(a: Any, b: Any) -> Any:
    """Return whether a <= b, element by element.

    a, b: numbers or tensors that broadcast. The result is bool, False where either is NaN.

    Raises ValueError for shapes that do not broadcast.

    >>> import treepie as tp
    >>> tp.less_equal(tp.tensor([1, 2]), 1).tolist()
    [True, False]
    """
    return a <= b


@elementwise(oracle=np.greater, nondifferentiable=True, result="bool")
def greater(a: Any, b: Any) -> Any:
    """Return whether a > b, element by element.

    a, b: numbers or tensors that broadcast. The result is bool, False where either is NaN.

    Raises ValueError for shapes that do not broadcast.

    >>> import treepie as tp
    >>> tp.greater(tp.tensor([1, 2]), 1).tolist()
    [False, True]
    """
    return a > b


@elementwise(oracle=np.greater_equal, nondifferentiable=True, result="bool")
def greater_equal(a: Any, b: Any) -> Any:
    """Return whether a >= b, element by element.

    a, b: numbers or tensors that broadcast. The result is bool, False where either is NaN.

    Raises ValueError for shapes that do not broadcast.

    >>> import treepie as tp
    >>> tp.greater_equal(tp.tensor([1, 2]), 2).tolist()
    [False, True]
    """
    return a >= b


@elementwise(oracle=np.isnan, nondifferentiable=True, result="bool", accepts="float")
def isnan(x: Any) -> Any:
    """Return whether each element is NaN.

    x: of any dtype. The result is bool.

    >>> import treepie as tp
    >>> tp.isnan(tp.tensor([1.0, float("nan")])).tolist()
    [False, True]
    """
    return x != x


@elementwise(oracle=np.isfinite, nondifferentiable=True, result="bool", accepts="float")
def isfinite(x: Any) -> Any:
    """Return whether each element is neither infinite nor NaN.

    x: of any dtype. The result is bool.

    >>> import treepie as tp
    >>> tp.isfinite(tp.tensor([1.0, float("inf")])).tolist()
    [True, False]
    """
    return vector.fabs(x) < float("inf")


@elementwise(oracle=np.logical_and, nondifferentiable=True, accepts="bool", dtypes=("bool",))
def logical_and(a: Any, b: Any) -> Any:
    """Return whether a and b are true, element by element.

    a, b: bools that broadcast.

    Raises TypeError for other dtypes, ValueError for shapes that do not broadcast.

    >>> import treepie as tp
    >>> tp.logical_and(tp.tensor([True, False]), True).tolist()
    [True, False]
    """
    return a & b


@elementwise(oracle=np.logical_or, nondifferentiable=True, accepts="bool", dtypes=("bool",))
def logical_or(a: Any, b: Any) -> Any:
    """Return whether a or b is true, element by element.

    a, b: bools that broadcast.

    Raises TypeError for other dtypes, ValueError for shapes that do not broadcast.

    >>> import treepie as tp
    >>> tp.logical_or(tp.tensor([True, False]), False).tolist()
    [True, False]
    """
    return a | b


@elementwise(oracle=np.logical_not, nondifferentiable=True, accepts="bool", dtypes=("bool",))
def logical_not(x: Any) -> Any:
    """Return whether each bool is false.

    x: bools.

    Raises TypeError for another dtype.

    >>> import treepie as tp
    >>> tp.logical_not(tp.tensor([True, False])).tolist()
    [False, True]
    """
    return ~x
