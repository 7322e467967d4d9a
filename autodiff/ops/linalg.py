"""Matrix multiplication, and the linear layer."""

from __future__ import annotations

import functools
import math
from typing import Any, cast

import numpy as np

from treepie.kernels import fast, formulas, matmul as kernels, matmul_bfloat16, vector
from treepie.kernels.elementwise import fill
from treepie.kernels.epilogue import Epilogue
from treepie.kernels.program import Launch, Operand, Spec
from treepie.kernels.vector import Formula
from treepie.kernels.write_back import ROW

from ..accuracy import FAST, HIGH
from ..arguments import as_tensor, same_float_dtype
from ..elementwise import Elementwise, sum_to
from ..precision import BFLOAT16, EMULATED, FLOAT32, attribute
from ..table import OPS, BoundArguments, Case, Shape, op
from ..tensor import Tensor, TensorLike
from ..trace.active import state
from . import arithmetic
from .shape import broadcast_to, reshape


def _matrix(shape: Shape, transposed: bool) -> tuple[int, int]:
    return (shape[-1], shape[-2]) if transposed else (shape[-2], shape[-1])


def _infer(a: Spec, b: Spec, transpose_a: bool, transpose_b: bool, precision: str = FLOAT32) -> list[Spec]:
    m, n = _matrix(a.shape, transpose_a)[0], _matrix(b.shape, transpose_b)[1]
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return [Spec((*batch, m, n), a.dtype)]


def _plan(
    inputs: list[Operand],
    outputs: list[Operand],
    scratch: Any,
    transpose_a: bool,
    transpose_b: bool,
    precision: str = FLOAT32,
    epilogue: Epilogue | None = None,
) -> list[Launch]:
    (a, b), (out,) = inputs, outputs
    m, k = _matrix(a.shape, transpose_a)
    n = out.shape[-1]
    if not k:
        return [fill(out, 0), *([epilogue.alone(out)] if epilogue else [])]
    a, b = (x.reshaped(x.size // (k * y), *x.shape[-2:]) for x, y in ((a, m), (b, n)))
    if b.shape[0] == 1 and not transpose_a:
        a, m = (
            a.reshaped(1, a.shape[0] * m, k),
            a.shape[0] * m,
        )  # one tall matrix beats many small ones
    c = out.reshaped(out.size // (m * n), m, n)
    return _product(a, b, c, scratch, transpose_a, transpose_b, precision, epilogue)


def _product(
    a: Operand,
    b: Operand,
    c: Operand,
    scratch: Any,
    transpose_a: bool,
    transpose_b: bool,
    precision: str,
    epilogue: Epilogue | None,
) -> list[Launch]:
    """Plan c (batch, m, n) = a b in a precision, with scratch memory."""
    (m, k), n, dtype = _matrix(a.shape, transpose_a), c.shape[2], c.dtype
    if precision == BFLOAT16:
        sizes = matmul_bfloat16.scratch(m, k, n, a.shape[0], b.shape[0])
        packed = [scratch((size,), dtype).buffer for size in sizes]
        return matmul_bfloat16.plan(a, b, c, transpose_a, transpose_b, (packed[0], packed[1]), epilogue)
    rounded: list[Launch] = []
    if precision == EMULATED:
        operands = a, b
        a, b = scratch(a.shape, dtype), scratch(b.shape, dtype)
        rounded = [matmul_bfloat16.rounded(x, y) for x, y in zip(operands, (a, b), strict=True)]
    sizes = kernels.scratch(m, k, n, a.shape[0], b.shape[0], transpose_a, transpose_b, dtype.name)
    packed = [scratch((size,), dtype).buffer for size in sizes]
    launches = kernels.plan(a, b, c, transpose_a, transpose_b, (packed[0], packed[1]), epilogue)
    return [*rounded, *launches]


def _rows(x: Tensor) -> Tensor:
    return x if x.ndim == 2 else reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def _vjp_a(
    g: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    transpose_a: bool,
    transpose_b: bool,
    precision: str = FLOAT32,
) -> Tensor:
    if transpose_a:
        out = batch_matmul(b, g, transpose_b, True, precision)
    else:
        out = batch_matmul(g, b, False, not transpose_b, precision)
    return sum_to(out, a.shape)


def _vjp_b(
    g: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    transpose_a: bool,
    transpose_b: bool,
    precision: str = FLOAT32,
) -> Tensor:
    if b.ndim == 2 and not transpose_a:  # sum over the batch inside the product, not after it
        a, g = _rows(a), _rows(g)
    if transpose_b:
        out = batch_matmul(g, a, True, transpose_a, precision)
    else:
        out = batch_matmul(a, g, not transpose_a, False, precision)
    return sum_to(out, b.shape)


def _sources(left: Tensor, right: Tensor, attributes: dict[str, Any]) -> BoundArguments:
    """Return operands and attributes of a product that reads the sources of transposed operands."""
    # One tall product of rows that were copied beats a product of each matrix, see `_plan`.
    if left.source is not None and (left.ndim == 2 or right.ndim > 2):
        left, attributes["transpose_a"] = left.source, not attributes["transpose_a"]
    if right.source is not None:
        right, attributes["transpose_b"] = right.source, not attributes["transpose_b"]
    return (left, right), attributes


def _oracle(
    a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False, precision: str = FLOAT32
) -> Any:
    left = np.swapaxes(a, -1, -2) if transpose_a else a
    return np.matmul(left, np.swapaxes(b, -1, -2) if transpose_b else b)


@op(
    name="matmul",
    signature="(...,m,k),(...,k,n)->(...,m,n)",
    infer=_infer,
    plan=_plan,
    epilogue=True,
    vjp=(_vjp_a, _vjp_b),
    oracle=_oracle,
    magnitude=lambda a, b, **attributes: _oracle(np.abs(a), np.abs(b), **attributes),
    cases=[
        Case(((3, 4), (4, 5))),
        Case(((4, 3), (4, 5)), {"transpose_a": True}),
        Case(((3, 4), (5, 4)), {"transpose_b": True}),
        Case(((4, 3), (5, 4)), {"transpose_a": True, "transpose_b": True}),
        Case(((2, 3, 4), (4, 5))),
        Case(((2, 3, 4), (2, 4, 5))),
        Case(((2, 1, 3, 4), (3, 4, 5))),
        Case(((1, 1), (1, 1))),
        Case(((0, 4), (4, 5))),
        Case(((3, 0), (0, 5))),
        Case(((33, 70), (70, 65))),
        Case(((70, 33), (65, 70)), {"transpose_a": True, "transpose_b": True}),
        Case(((13, 800), (800, 3))),
    ],
    wrong=Case(((3, 4), (5, 6))),
    large=Case(((512, 512), (512, 512))),
    ulp=16,
)
def batch_matmul(
    a: TensorLike,
    b: TensorLike,
    transpose_a: bool = False,
    transpose_b: bool = False,
    precision: str | None = None,
) -> BoundArguments:
    """Return the matrix product of the last two axes, transposed on request; leading axes broadcast.

    precision: None for that of the block; see `tp.precision`.
    """
    left, right = as_tensor(a), as_tensor(b)
    same_float_dtype("matmul", a=left, b=right)
    shape, other = left._data.shape, right._data.shape
    attributes: dict[str, Any] = {"transpose_a": bool(transpose_a), "transpose_b": bool(transpose_b)}
    attributes |= attribute(left, precision)
    if len(shape) == 2 == len(other) and shape[not transpose_a] == other[bool(transpose_b)]:
        return _sources(left, right, attributes)
    inner = "k" if left.ndim < 2 else _matrix(left.shape, transpose_a)[1]
    if left.ndim < 2 or right.ndim < 2 or _matrix(right.shape, transpose_b)[0] != inner:
        expected = f"(..., n, {inner})" if transpose_b else f"(..., {inner}, n)"
        raise ValueError(
            f"matmul: a has shape {left.shape} and b {right.shape}, expected b of shape {expected}"
        )
    try:
        batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    except ValueError:
        raise ValueError(
            f"matmul: a has shape {left.shape} and b {right.shape}, expected leading axes that broadcast"
        ) from None
    operands = []
    inputs, attributes = _sources(left, right, attributes)
    for t in inputs:
        count = int(np.prod(t.shape[:-2]))
        whole = count == 1 or t.shape[:-2] == batch
        operands.append(t if whole else broadcast_to(t, (*batch, *t.shape[-2:])))
    return (operands[0], operands[1]), attributes


_FLOAT32 = np.dtype("float32")

#: Activations that a linear layer applies in its epilogue: formulas, and the derivative
#: times g in ops, from (g, result, sum). Those of the second group need the sum, which is kept for them.
_OF_RESULT: dict[str | None, tuple[Any, Any]] = {
    None: (lambda z: z, lambda g, y, z: g),
    "relu": (lambda z: vector.maximum(z, 0), lambda g, y, z: arithmetic.where(y <= 0, 0.0, g)),
    "tanh": (formulas.tanh, lambda g, y, z: g * (1 - y * y)),
    "sigmoid": (formulas.sigmoid, lambda g, y, z: g * y * (1 - y)),
}
_OF_SUM: dict[str | None, Formula] = {name: getattr(formulas, name) for name in ("gelu", "silu")}
_FAST: dict[str | None, Formula] = {name: getattr(fast, name) for name in ("tanh", "sigmoid", "gelu", "silu")}
ACTIVATIONS = (*_OF_RESULT, *_OF_SUM)


def _infer_linear(
    x: Spec, weight: Spec, bias: Spec, activation: str | None, precision: str = FLOAT32, accuracy: str = HIGH
) -> list[Spec]:
    return [Spec((*x.shape[:-1], weight.shape[1]), x.dtype)] * (2 if activation in _OF_SUM else 1)


@functools.cache
def _formula(activation: str | None, accuracy: str) -> Formula:
    function = _OF_SUM.get(activation) or _OF_RESULT[activation][0]
    if accuracy == FAST:
        function = _FAST[activation]
    if activation in _OF_SUM:
        return lambda c, bias: (function(c + bias), c + bias)
    return lambda c, bias: function(c + bias)


def plan_linear(
    inputs: list[Operand],
    outputs: list[Operand],
    scratch: Any,
    activation: str | None,
    precision: str = FLOAT32,
    accuracy: str = HIGH,
    epilogue: Epilogue | None = None,
) -> list[Launch]:
    """Plan a linear layer, with its activation and an epilogue of more operations."""
    (x, weight, bias), (out, *kept) = inputs, outputs
    k, n = weight.shape
    own = {None: 1.0, "relu": 2.0}.get(activation, 40.0)
    after = Epilogue(
        f"linear_{activation}", _formula(activation, accuracy), (bias,), (ROW,), tuple(kept), own
    )
    after = after.then(epilogue)
    if not k:
        return [fill(out, 0), after.alone(out)]
    m = x.size // k
    a, b, c = x.reshaped(1, m, k), weight.reshaped(1, k, n), out.reshaped(1, m, n)
    return _product(a, b, c, scratch, False, False, precision, after)


def _before_activation(
    g: Any,
    ans: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str | None,
    precision: str = FLOAT32,
    accuracy: str = HIGH,
) -> Tensor:
    """Return the gradient of the sum x @ weight + bias."""
    if activation not in _OF_SUM:
        return _OF_RESULT[activation][1](g, ans, None)  # type: ignore[no-any-return]
    (of_result, of_sum), (y, z) = g, ans
    if of_result is None:
        return of_sum  # type: ignore[no-any-return]
    assert activation is not None
    row = OPS[activation]
    assert isinstance(row, Elementwise)
    derivative: Any = row.at(accuracy, z).gradient(of_result, y, z)
    return derivative if of_sum is None else derivative + of_sum  # type: ignore[no-any-return]


def _reference(
    x: Any,
    weight: Any,
    bias: Any,
    activation: str | None = None,
    precision: str = FLOAT32,
    accuracy: str = HIGH,
) -> Any:
    z = x @ weight + bias
    if activation is None:
        return z
    y = OPS[activation].oracle(z)
    return (y, z) if activation in _OF_SUM else y


_LINEAR = [(3, 5), (5, 4), (4,)]


@op(
    signature="(...,k),(k,n),(n)->(...,n)",
    returns=cast("type[Tensor | tuple[Tensor, Tensor]]", Tensor | tuple[Tensor, Tensor]),
    infer=_infer_linear,
    plan=plan_linear,
    epilogue=True,
    shared=_before_activation,
    vjp=(
        lambda g, y, x, w, b, activation, precision=FLOAT32, accuracy=HIGH: reshape(
            batch_matmul(_rows(g), w, False, True, precision), x.shape
        ),
        lambda g, y, x, w, b, activation, precision=FLOAT32, accuracy=HIGH: batch_matmul(
            _rows(x), _rows(g), True, False, precision
        ),
        lambda g, y, x, w, b, activation, precision=FLOAT32, accuracy=HIGH: sum_to(g, b.shape),
    ),
    oracle=_reference,
    magnitude=lambda x, w, b, activation=None: np.abs(x) @ np.abs(w) + np.abs(b),
    cases=[
        *(Case(tuple(_LINEAR), {"activation": name}) for name in ACTIVATIONS),
        Case(((2, 3, 5), (5, 4), (4,)), {"activation": "gelu"}),
        Case(((3, 0), (0, 4), (4,)), {"activation": "silu"}),
        Case(((0, 5), (5, 4), (4,)), {"activation": "tanh"}),
        Case(((5,), (5, 4), (4,))),
        Case(((33, 600), (600, 40), (40,)), {"activation": "relu"}),
    ],
    wrong=Case(((3, 4), (5, 6), (6,))),
    large=Case(((512, 512), (512, 512), (512,)), {"activation": "relu"}),
    ulp=16,
)
def linear(
    x: TensorLike, weight: TensorLike, bias: TensorLike, activation: str | None = None
) -> BoundArguments:
    """Return activation(x @ weight + bias) in one pass; for gelu and silu x @ weight + bias too."""
    t, w, b = as_tensor(x), as_tensor(weight), as_tensor(bias)
    if w.ndim != 2 or t.ndim == 0 or t.shape[-1] != w.shape[0]:
        shapes = f"x has shape {t.shape} and weight {w.shape}"
        if w.ndim != 2 or t.ndim == 0:
            raise ValueError(f"linear: {shapes}, expected (..., in) and (in, out)")
        raise ValueError(f"linear: x has {t.shape[-1]} features, expected {w.shape[0]} ({shapes})")
    if b.shape != w.shape[1:]:
        raise ValueError(f"linear: bias has shape {b.shape}, expected {w.shape[1:]}")
    same_float_dtype("linear", x=t, weight=w, bias=b)
    if activation not in ACTIVATIONS:
        raise ValueError(f"linear: activation is {activation!r}, expected one of {ACTIVATIONS}")
    attributes = {"activation": activation} | attribute(t, None)
    if activation in _FAST and state.accuracy == FAST and t.dtype == _FLOAT32:
        attributes["accuracy"] = FAST
    return (t, w, b), attributes


def matmul(a: TensorLike, b: TensorLike) -> Tensor:
    """Return the matrix product a @ b.

    a: (..., m, k) or (k,).  b: (..., k, n) or (k,). Both of one float dtype; leading axes broadcast. The
    rules are those of `numpy.matmul`.

    Raises ValueError for sizes that do not fit, TypeError for other dtypes.

    >>> import treepie as tp
    >>> tp.matmul(tp.tensor([[1.0, 2.0]]), tp.tensor([[3.0], [4.0]])).tolist()
    [[11.0]]
    """
    left, right = as_tensor(a), as_tensor(b)
    if len(left._data.shape) > 1 and len(right._data.shape) > 1:
        return batch_matmul(left, right)
    if left.ndim == 0 or right.ndim == 0:
        raise ValueError(
            f"matmul: a has shape {left.shape} and b {right.shape}, expected at least one axis each"
        )
    row, column = left.ndim == 1, right.ndim == 1
    out = batch_matmul(reshape(left, (1, -1)) if row else left, reshape(right, (-1, 1)) if column else right)
    if row and column:
        return reshape(out, ())
    return reshape(out, (*out.shape[:-2], out.shape[-1]) if row else out.shape[:-1])
