"""Rows of the op table that draw random numbers.

A key is an int64 tensor of two words; their high halves are 0, or the rows of `rng.for_rows`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from treepie.kernels import random as kernels
from treepie.kernels.elementwise import IndexOffset, elementwise as plan_elementwise
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_float, as_tensor, described
from ..table import BoundArguments, Case, Shape, op
from ..tensor import DType, Tensor, TensorLike, int32, int64


def check_key(name: str, key: Any, argument: str = "key") -> Tensor:
    """Return a key, or raise TypeError for anything else."""
    if not isinstance(key, Tensor) or key.dtype != int64 or key.shape != (2,):
        hint = f": tp.rng.key({key})" if type(key) is int and 0 <= key < 2**32 else ""
        expected = f"expected one from rng.key, rng.split or rng.fold_in{hint}"
        raise TypeError(f"{name}: {argument} is {described(key)}, {expected}")
    return key


def _words(key: Operand) -> list[Operand]:
    one = Spec((), int64)
    return [Operand(key.buffer, one, key.offset), Operand(key.buffer, one, key.offset + 8)]


def _rows(key: Operand, shape: Shape) -> IndexOffset:
    """Return the index in the global array of the first element of an array."""
    numbers = (shape[0], math.prod(shape[1:])) if shape else (-1, 1)
    return IndexOffset(kernels.first_index, key, numbers)


def _threefry(key: Any, x0: Any, x1: Any) -> tuple[Any, Any]:
    """Compute Threefry-2x32-20 in NumPy: the oracle, straight from the paper's section 3.2 and table 2."""
    k = [np.uint64(int(word) % 2**32) for word in key]
    k.append(k[0] ^ k[1] ^ np.uint64(0x1BD11BDA))
    mask = np.uint64(0xFFFFFFFF)
    x0, x1 = (np.asarray(x0, np.uint64) + k[0]) & mask, (np.asarray(x1, np.uint64) + k[1]) & mask
    for r in range(20):
        turn = np.uint64([13, 15, 26, 6, 17, 29, 16, 24][r % 8])
        x0 = (x0 + x1) & mask
        x1 = (((x1 << turn) | (x1 >> (np.uint64(32) - turn))) & mask) ^ x0
        if r % 4 == 3:
            s = r // 4 + 1
            x0 = (x0 + k[s % 3]) & mask
            x1 = (x1 + k[(s + 1) % 3] + np.uint64(s)) & mask
    return x0, x1


def _low(key: Any) -> Any:
    return np.asarray(key) & 0xFFFFFFFF


def _block(key: Any, shape: Shape, stream: int) -> tuple[Any, Any]:
    """Return the words of the blocks of an array's elements, flat."""
    first, count = (int(word) >> 32 for word in key)
    counters = np.arange(math.prod(shape), dtype=np.uint64)
    if shape and shape[0] == count:
        counters += np.uint64(first * math.prod(shape[1:]))
    return _threefry(key, counters % 2**32, (counters >> np.uint64(32)) + np.uint64(stream % 2**32))


def _bits_oracle(key: Any, shape: Shape, stream: int = kernels.BITS) -> Any:
    w0, w1 = _block(key, shape, stream)
    return (w0 | (w1 << np.uint64(32))).view(np.int64).reshape(shape)


def uniform_oracle(key: Any, shape: Shape, dtype: Any) -> Any:
    """Return the numbers of random_uniform, in NumPy."""
    if dtype == np.float32:
        return ((_block(key, shape, kernels.BITS)[0] >> np.uint64(8)) / 2.0**24).reshape(shape)
    return (_bits_oracle(key, shape).view(np.uint64) >> np.uint64(11)) / 2.0**53


def _normal_oracle(key: Any, shape: Shape, dtype: Any) -> Any:
    if dtype == np.float32:
        w0, w1 = _block(key, shape, kernels.BITS)
        u, t = np.float32(w0 + np.uint64(1)) / 2.0**32, w1 / 2.0**32
        return (np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * t)).reshape(shape)
    u = ((_bits_oracle(key, shape).view(np.uint64) >> np.uint64(11)) + 1.0) / 2.0**53
    t = _bits_oracle(key, shape, kernels.SECOND).view(np.uint64) / 2.0**64
    return np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * t)


def _planner(
    name: str,
    formulas: dict[str, Callable[..., Any]],
    by_rows: bool = True,
) -> Callable[..., list[Launch]]:
    """Make the plan of formulas of a key. by_rows: whether elements are those of the key's rows."""

    def plan(inputs: list[Operand], outputs: list[Operand], scratch: Any, **attributes: Any) -> list[Launch]:
        formula = formulas[outputs[0].dtype.name]
        rows = _rows(inputs[0], outputs[0].shape) if by_rows else None
        return [plan_elementwise(name, formula, _words(inputs[0]), outputs, 150, rows)]

    return plan


_SHAPES = [(3, 5), (), (0, 2), (1000,)]
_KEY = {0: 2**32}
#: The high halves of keys: rows that an array has (their counters exceed 32 bits), and rows that it lacks.
_ROWS = [((3, 5), (2**31 - 4, 3)), ((3, 5), (7, 5)), ((), (7, 1)), ((1000,), (2**31 - 1, 1000))]


def high_halves(first: int, count: int) -> tuple[int, int]:
    """Return what `rng.for_rows` adds to the words of a key."""
    return first << 32, count << 32


def _draws(integers: dict[int, int], **attributes: Any) -> list[Case]:
    """Return cases of draws by keys without rows and with rows."""
    of_key = ((2,),) * len(integers)
    cases = [Case(of_key, {"shape": s, **attributes}, integers) for s in _SHAPES]
    for shape, rows in _ROWS:
        cases.append(Case(of_key, {"shape": shape, **attributes}, integers, {0: high_halves(*rows)}))
    return cases


def _floats(
    name: str,
    doc: str,
    formulas: dict[str, Callable[..., Any]],
    oracle: Callable[..., Any],
    ulp: float,
) -> Callable[[Tensor, Shape, DType], Tensor]:
    """Make a row that draws floats of a dtype."""

    def bind(key: Tensor, shape: Shape, dtype: DType) -> BoundArguments:
        return (check_key("rng", key),), {"shape": shape, "dtype": np.dtype(dtype)}

    bind.__doc__ = doc
    return op(
        name=name,
        signature="(2)->(...)",
        infer=lambda key, shape, dtype: [Spec(shape, dtype)],
        plan=_planner(name, formulas),
        nondifferentiable=True,
        oracle=oracle,
        cases=[c for d in ("float32", "float64") for c in _draws(_KEY, dtype=np.dtype(d))],
        wrong=Case(((3,),), {"shape": (3,), "dtype": np.dtype("float32")}, _KEY),
        large=Case(((2,),), {"shape": (1000, 1000), "dtype": np.dtype("float32")}, _KEY),
        dtypes=("int64",),
        ulp=ulp,
    )(bind)


@op(
    signature="(2)->(...)",
    infer=lambda key, shape: [Spec(shape, int64)],
    plan=_planner("random_bits", {"int64": kernels.bits}, by_rows=False),
    nondifferentiable=True,
    oracle=lambda key, shape: _bits_oracle(_low(key), shape),
    cases=_draws(_KEY),
    wrong=Case(((3,),), {"shape": (3,)}, _KEY),
    large=Case(((2,),), {"shape": (1000, 1000)}, _KEY),
    dtypes=("int64",),
)
def random_bits(key: Tensor, shape: Shape) -> BoundArguments:
    """Return 64 random bits for each element: for a permutation, so a key's rows do not matter."""
    return (check_key("rng", key),), {"shape": shape}


random_uniform = _floats(
    "random_uniform",
    "Return uniform numbers in [0, 1).",
    {"float32": kernels.uniform32, "float64": kernels.uniform64},
    uniform_oracle,
    ulp=0,
)
random_normal = _floats(
    "random_normal",
    "Return numbers of the standard normal distribution.",
    {"float32": kernels.normal32, "float64": kernels.normal64},
    _normal_oracle,
    ulp=16,
)


def _plan_at(inputs: list[Operand], outputs: list[Operand], scratch: Any) -> list[Launch]:
    key, index = inputs
    return [plan_elementwise("random_bits_at", kernels.bits_at, [*_words(key), index], outputs, 150)]


def _at_oracle(key: Any, index: Any) -> Any:
    w0, w1 = _threefry(key, index & 0xFFFFFFFF, index >> 32)
    return (w0 | (w1 << np.uint64(32))).view(np.int64)


@op(
    signature="(2),(...)->(...)",
    infer=lambda key, index: [Spec(index.shape, int64)],
    plan=_plan_at,
    nondifferentiable=True,
    oracle=_at_oracle,
    cases=[Case(((2,), s), {}, {0: 2**32, 1: 2**61}) for s in ((3, 5), (1,), (0, 2), (1000,))],
    wrong=Case(((3,), (3,)), {}, {0: 2**32, 1: 10}),
    large=Case(((2,), (1000, 1000)), {}, {0: 2**32, 1: 2**61}),
    dtypes=("int64",),
)
def random_bits_at(key: Tensor, index: Tensor) -> BoundArguments:
    """Return elements of what `random_bits` draws, by their flat indices, below 2**62."""
    if index.dtype != int64:
        raise TypeError(f"rng: index is {index.dtype.name}, expected int64")
    return (check_key("rng", key), index), {}


def _split_oracle(key: Any, count: int) -> Any:
    return np.stack(_block(_low(key), (count,), kernels.SPLIT), -1).astype(np.int64) + (key - _low(key))


@op(
    signature="(2)->(count,2)",
    infer=lambda key, count: [Spec((count, 2), int64)],
    plan=_planner("random_split", {"int64": kernels.split}, by_rows=False),
    nondifferentiable=True,
    oracle=_split_oracle,
    cases=[Case(((2,),), {"count": 7}, _KEY, {0: high_halves(*r)}) for r in ((0, 0), (2**31 - 4, 7))],
    wrong=Case(((3,),), {"count": 2}, _KEY),
    large=Case(((2,),), {"count": 1000}, _KEY),
    dtypes=("int64",),
)
def random_split(key: Tensor, count: int) -> BoundArguments:
    """Return keys that share no draws with each other or with the key that they come from, but its rows."""
    return (check_key("rng.split", key),), {"count": count}


def _plan_fold(inputs: list[Operand], outputs: list[Operand], scratch: Any) -> list[Launch]:
    key, data = inputs
    return [plan_elementwise("random_fold", kernels.fold_in, [*_words(key), data], outputs, 150)]


def _fold_oracle(key: Any, data: Any) -> Any:
    high = (int(data) >> 32) + kernels.FOLD
    return np.array(_threefry(key, int(data) % 2**32, high % 2**32)).astype(np.int64) + (key - _low(key))


@op(
    signature="(2),()->(2)",
    infer=lambda key, data: [Spec((2,), int64)],
    plan=_plan_fold,
    nondifferentiable=True,
    oracle=_fold_oracle,
    cases=[
        Case(((2,), ()), {}, {0: 2**32, 1: 2**40}, {0: high_halves(*r)}) for r in ((0, 0), (2**31 - 4, 2))
    ],
    wrong=Case(((2,), (3,)), {}, {0: 2**32, 1: 10}),
    dtypes=("int64",),
)
def random_fold(key: Tensor, data: Tensor) -> BoundArguments:
    """Return the key of a key and an integer."""
    if data.shape != () or data.dtype != int64:
        raise ValueError(f"rng.fold_in: data has shape {data.shape}, expected one integer")
    return (check_key("rng.fold_in", key), data), {}


def _plan_for_rows(inputs: list[Operand], outputs: list[Operand], scratch: Any) -> list[Launch]:
    return [plan_elementwise("random_for_rows", kernels.for_rows, inputs, outputs)]


@op(
    signature="(2),(),()->(2)",
    infer=lambda key, first, count: [Spec((2,), int64)],
    plan=_plan_for_rows,
    nondifferentiable=True,
    oracle=lambda key, first, count: _low(key) + (np.array([first, count]) << 32),
    cases=[Case(((2,), (), ()), {}, {0: 2**63 - 1, 1: 2**31, 2: 2**31})],
    wrong=Case(((2,), (3,), ()), {}, {0: 2**32, 1: 10, 2: 10}),
    dtypes=("int64",),
)
def random_for_rows(key: Tensor, first: Tensor, count: Tensor) -> BoundArguments:
    """Return a key with other rows."""
    for number in (first, count):
        if number.shape != () or number.dtype != int64:
            raise ValueError(
                f"rng.for_rows: first and count have shapes {first.shape} and {count.shape}, expected ()"
            )
    return (check_key("rng.for_rows", key), first, count), {}


def _plan_integers(inputs: list[Operand], outputs: list[Operand], scratch: Any, shape: Shape) -> list[Launch]:
    key, bounds = inputs
    words = [*_words(key), *_words(bounds)]
    return [plan_elementwise("random_integers", kernels.integers, words, outputs, 150, _rows(key, shape))]


def _integers_oracle(key: Any, bounds: Any, shape: Shape) -> Any:
    bits = _bits_oracle(key, shape).view(np.uint64)
    drawn = [int(bounds[0]) + (int(b) * int(bounds[1]) >> 64) for b in bits.ravel()]
    return np.array(drawn, np.int64).reshape(shape)


@op(
    signature="(2),(2)->(...)",
    infer=lambda key, bounds, shape: [Spec(shape, int64)],
    plan=_plan_integers,
    nondifferentiable=True,
    oracle=_integers_oracle,
    cases=_draws({0: 2**32, 1: 2**32}),
    wrong=Case(((3,), (2,)), {"shape": (3,)}, {0: 2**32, 1: 100}),
    large=Case(((2,), (2,)), {"shape": (300, 300)}, {0: 2**32, 1: 2**32}),
    dtypes=("int64",),
)
def random_integers(key: Tensor, bounds: Tensor, shape: Shape) -> BoundArguments:
    """Return integers from bounds[0] on, bounds[1] of them, equally likely."""
    if bounds.shape != (2,) or bounds.dtype != int64:
        raise ValueError(f"rng.randint: bounds have shape {bounds.shape}, expected (low, count)")
    return (check_key("rng.randint", key), bounds), {"shape": shape}


#: Byte offsets of the low halves of a key's words.
_LOW = (0, 8) if sys.byteorder == "little" else (4, 12)


def _plan_dropout(inputs: list[Operand], outputs: list[Operand], scratch: Any, rate: float) -> list[Launch]:
    x, key = inputs
    # The low halves of the key's words, as int32: int64 would halve the elements of a vector.
    one = Spec((), int32)
    words = [Operand(key.buffer, one, key.offset + k) for k in _LOW]
    return [plan_elementwise("dropout", kernels.dropout(rate), [x, *words], outputs, 90, _rows(key, x.shape))]


def _dropout_oracle(x: Any, key: Any, rate: float) -> Any:
    u = (_block(key, x.shape, kernels.BITS)[0] >> np.uint64(8)) / 2.0**24
    return np.where(u.reshape(x.shape) >= rate, x / (1 - rate), 0.0)


@op(
    signature="(...),(2)->(...)",
    infer=lambda x, key, rate: [Spec(x.shape, x.dtype)],
    plan=_plan_dropout,
    vjp=(lambda g, y, x, key, rate: dropout(g, key, rate), None),
    oracle=_dropout_oracle,
    cases=[
        Case((s, (2,)), {"rate": r}, {1: 2**32})
        for s, r in (((3, 5), 0.5), ((), 0.9), ((0, 2), 0.1), ((1000,), 0.25), ((37,), 0.0))
    ]
    + [Case((s, (2,)), {"rate": 0.5}, {1: 2**32}, {1: high_halves(*rows)}) for s, rows in _ROWS],
    wrong=Case(((3,), (3,)), {"rate": 0.5}, {1: 2**32}),
    large=Case(((1000, 1000), (2,)), {"rate": 0.1}, {1: 2**32}),
)
def dropout(x: TensorLike, key: Tensor, rate: float) -> BoundArguments:
    """Return x / (1 - rate) where an element's uniform float32 number is at least `rate`, else 0."""
    return (as_float("dropout", x), check_key("dropout", as_tensor(key))), {"rate": float(rate)}
