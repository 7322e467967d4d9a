"""Elementwise ops: rows with a formula, and VJP rules that are formulas too."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol, cast, overload

from llvmlite import ir

from treepie.kernels.elementwise import elementwise as plan_elementwise
from treepie.kernels.program import Launch, Operand, Spec
from treepie.kernels.vector import Formula, Value, vector_type

from . import tape
from .accuracy import FAST, Fast, with_slope
from .promotion import Accepts, broadcast, constant, promoted
from .table import VJP, BoundArguments, Case, Op, public, register
from .tensor import Tensor, TensorLike, bool_, float32
from .trace import active
from .trace.repeat import repeated_formula


@dataclass(frozen=True, eq=False, repr=False)
class Fusible(Op):
    """A row whose results are formulas of its operands' elements: programs fuse its calls with others.

    flops: rough cost of an element in arithmetic operations.
    numbers: where it is not 0, the length of the last operand, whose elements the formula takes as scalars.
    """

    formula: Formula = lambda x: x
    flops: float = 1.0
    numbers: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class Elementwise(Fusible):
    """A row whose result is a formula of its operands, element by element.

    Its rules are written once, in operators and ops, and used twice: on tensors while an outer gradient
    records them, else on formula values, so that all gradients of a call are one fused kernel.

    fast: the row that runs in its place on float32 where `tp.accuracy` says "fast".
    accuracy: "fast" of such a row.  relative_to: what its `magnitude` is, for OPS.md.
    """

    in_place: bool = True
    fast: Elementwise | None = None
    accuracy: str | None = None
    relative_to: str = "the result"

    def __str__(self) -> str:
        """Return the name, and the accuracy of a fast row."""
        return f"{self.name} ({self.accuracy})" if self.accuracy else self.name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the op; on formula values, continue the formula."""
        for a in args:
            if type(a) is Value:
                return self.formula(*args)
        return self.chosen(*self.bind(*args, **kwargs))

    def caller(self, explain: Callable[[Any, Any], TypeError | None]) -> Callable[..., Any]:
        """Return a function that calls the row, with fewer Python calls. explain: `call_error` of the row."""
        bind, formula, row = self.bind, self.formula, self
        apply = self.apply if self.fast is None else self.chosen

        def call(*args: Any, **kwargs: Any) -> Any:
            trace = active.state.trace
            if trace is not None and trace.user and not kwargs:
                result = repeated_formula(trace, row, args)
                if result is not None:
                    return result
            if not args or type(args[0]) is not Tensor:  # formulas have no tensors
                for a in args:
                    if type(a) is Value:
                        return formula(*args)
            try:
                return apply(*bind(*args, **kwargs))
            except TypeError:
                if (error := explain(args, kwargs)) is not None:
                    raise error from None
                raise

        return call

    def chosen(self, inputs: tuple[Tensor, ...], attributes: dict[str, Any]) -> Any:
        """Run the op in the accuracy of the block."""
        return self.at(active.state.accuracy, inputs[0]).apply(inputs, attributes)

    def at(self, accuracy: str | None, x: Tensor) -> Elementwise:
        """Return the row that computes this function of x in an accuracy."""
        return self.fast if self.fast is not None and accuracy == FAST and x.dtype == float32 else self

    def gradient(self, g: Tensor, result: Tensor, x: Tensor) -> Any:
        """Return the gradient of the operand of a row of one: one kernel, unless a gradient records it."""
        assert self.vjp is not None
        assert self.vjp[0] is not None
        if tape.recording():
            return self.vjp[0](g, result, x)
        return self._backward((True,)).results((g, result, x))[0]

    def _backward(self, needed: tuple[bool, ...]) -> _Backward:
        if needed not in self._fused:
            self._fused[needed] = _Backward(self, needed)
        return self._fused[needed]

    @cached_property
    def _fused(self) -> dict[tuple[bool, ...], _Backward]:
        return {}

    def pull_back(
        self, node: tape.Node, gradients: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Return the gradients of the operands, each summed over the axes it was broadcast along."""
        if self.vjp is None or tape.recording() or node.attributes:
            results = super().pull_back(node, gradients, needs)
        else:
            needed = tuple(n and r is not None for n, r in zip(needs, self.vjp, strict=True))
            (g,) = gradients
            assert g is not None
            results = self._backward(needed).results((g, *node.results(), *node.inputs))
        return [None if x is None else sum_to(x, t.shape) for x, t in zip(results, node.inputs, strict=True)]


def sum_to(g: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum a gradient over the axes along which an operand of `shape` was broadcast."""
    if g.shape == shape:
        return g
    extra = g.ndim - len(shape)
    axes = [k for k in range(g.ndim) if k < extra or (shape[k - extra] == 1 and g.shape[k] != 1)]
    return (g.sum(tuple(axes)) if axes else g).reshape(shape)


class _Backward:
    """The rules of an elementwise op for some of its operands, as one formula of (g, result, operands)."""

    def __init__(self, row: Elementwise, needed: tuple[bool, ...]) -> None:
        assert row.vjp is not None
        self.needed, count = needed, len(needed)
        rules = [r for r, w in zip(row.vjp, needed, strict=True) if w and r is not None]
        # A rule that returns g itself needs no kernel, and an argument that no rule reads is not kept for
        # the backward pass: run the rules once on the arguments of a throw-away function to find out.
        conditions = [k + 2 for k in row.cases[0].integers]
        kinds = ["bool" if k in conditions else "float64" for k in range(count + 2)]
        function, (g, *others) = probe(kinds)
        results: list[Any] = [rule(g, *others) for rule in rules]
        self.passed = [out is g for out in results]
        kernels = [r for r, p in zip(rules, self.passed, strict=True) if not p]
        self.op: Op | None = None
        if kernels:
            read = _sources([out.ir for out, p in zip(results, self.passed, strict=True) if not p])
            #: Positions in (g, result, operands) of the kernel's inputs; g always, since it has the shape.
            self.operands = [k for k, a in enumerate(function.args) if not k or a in read]
            name = f"{row.name}_vjp{''.join('1' if w else '0' for w in needed)}"
            formula, flops = _formula_of(kernels, self.operands, count + 2), row.flops + 2
            self.op = replace(
                row,
                name=name,
                infer=lambda g, *others: [Spec(g.shape, g.dtype)] * len(kernels),
                plan=_planner(name, formula, flops),
                formula=formula,
                flops=flops,
                fast=None,
                _plans={},
            )

    def results(self, arguments: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the gradients, None for operands that need none. arguments: (g, result, operands)."""
        results: Iterator[Tensor] = iter(())
        if self.op is not None:
            results = iter(self.op.run(tuple(arguments[k] for k in self.operands), {}))
        passed, g = iter(self.passed), arguments[0]
        return [(g if next(passed) else next(results)) if w else None for w in self.needed]


def probe(dtypes: Sequence[str]) -> tuple[ir.Function, list[Value]]:
    """Return a throw-away function, and its arguments as values, to run a formula on once."""
    kinds = [vector_type(dtype, 2) for dtype in dtypes]
    function = ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), kinds), "probe")
    builder = ir.IRBuilder(function.append_basic_block())
    return function, [Value(builder, d, 2, a) for d, a in zip(dtypes, function.args, strict=True)]


def _sources(values: list[ir.Value]) -> set[ir.Value]:
    """Return all values that branch-free code computes some values from, these included."""
    sources: set[ir.Value] = set()
    stack = list(values)
    while stack:
        value = stack.pop()
        if value not in sources:
            sources.add(value)
            stack += getattr(value, "operands", [])
    return sources


def _formula_of(rules: list[VJP], positions: list[int], count: int) -> Formula:
    """Return the rules as a formula of those of their `count` arguments that they read."""

    def formula(*values: Value) -> tuple[Any, ...]:
        arguments = [values[0]] * count  # g is a placeholder for arguments that no rule reads
        for k, value in zip(positions, values, strict=True):
            arguments[k] = value
        return tuple(rule(*arguments) for rule in rules)

    return formula


def _planner(name: str, formula: Formula, flops: float) -> Callable[..., list[Launch]]:
    def plan(inputs: list[Operand], outputs: list[Operand], scratch: Any, **attributes: Any) -> list[Launch]:
        return [plan_elementwise(name, formula, inputs, outputs, flops)]

    return plan


def _cases(count: int, conditions: dict[int, int]) -> tuple[Case, ...]:
    """Return operand shapes that cover the ways to broadcast."""
    if count == 1:
        shapes: list[tuple[tuple[int, ...], ...]] = [((3, 5),), ((),), ((0, 4),), ((1,),), ((37,),)]
    else:
        rest = count - 2
        shapes = [
            ((3, 5),) * count,
            ((3, 5), (5,)) + ((3, 1),) * rest,
            ((3, 1), (1, 4)) + ((),) * rest,
            ((), (2, 3)) + ((3,),) * rest,
            ((0, 4), (4,)) + ((1, 1),) * rest,
            ((1, 1), (1,)) + ((),) * rest,
            ((2, 1, 3), (4, 1)) + ((3,),) * rest,
        ]
    return tuple(Case(s, integers=conditions) for s in shapes)


class _Decorator(Protocol):
    """Turns a formula into an op of as many operands, passed by position."""

    @overload
    def __call__(self, formula: Callable[[Any], Any], /) -> Callable[[TensorLike], Tensor]: ...
    @overload
    def __call__(
        self, formula: Callable[[Any, Any], Any], /
    ) -> Callable[[TensorLike, TensorLike], Tensor]: ...
    @overload
    def __call__(
        self, formula: Callable[[Any, Any, Any], Any], /
    ) -> Callable[[TensorLike, TensorLike, TensorLike], Tensor]: ...
    @overload
    def __call__(
        self, formula: Callable[[Any, Any, Any, Any], Any], /
    ) -> Callable[[TensorLike, TensorLike, TensorLike, TensorLike], Tensor]: ...


def elementwise(
    *,
    oracle: Callable[..., Any],
    vjp: VJP | tuple[VJP | None, ...] | None = None,
    accepts: Accepts = "any",
    result: Literal["same", "bool"] = "same",
    conditions: Sequence[int] = (),
    flops: float = 1.0,
    name: str | None = None,
    **options: Any,
) -> _Decorator:
    """Make a row of the decorated formula, which computes a value from values.

    accepts: see `promoted`.  result: "same" dtype as the operands, or "bool".
    conditions: positions of operands that are bools, whatever the dtype of the others.
    flops: rough cost of an element in arithmetic operations.
    """

    def decorate(formula: Callable[..., Any]) -> Any:
        own = name or formula.__name__
        parameters = inspect.signature(formula).parameters
        row = elementwise_row(
            own,
            formula,
            len(parameters),
            (vjp,) if callable(vjp) else vjp,
            flops,
            accepts,
            result,
            conditions,
            oracle=oracle,
            **options,
        )
        kind = inspect.Parameter.POSITIONAL_ONLY
        operands = [inspect.Parameter(p, kind, annotation="TensorLike") for p in parameters]
        call = public(register(row), formula, inspect.Signature(operands, return_annotation="Tensor"))
        # The modules of formulas need not import the types.
        call.__annotations__ = {**dict.fromkeys(parameters, TensorLike), "return": Tensor}
        return call

    return cast(_Decorator, decorate)


def elementwise_row(
    name: str,
    formula: Formula,
    count: int,
    rules: tuple[VJP | None, ...] | None,
    flops: float,
    accepts: Accepts = "float",
    result: Literal["same", "bool"] = "same",
    conditions: Sequence[int] = (),
    oracle: Callable[..., Any] = lambda *_: None,
    fast: Fast | None = None,
    **options: Any,
) -> Elementwise:
    """Return a row of a formula of `count` operands; see `elementwise`."""
    first_value = next(k for k in range(count) if k not in conditions)

    def infer(*specs: Spec) -> list[Spec]:
        dtype = bool_ if result == "bool" else specs[first_value].dtype
        return [Spec(broadcast(name, specs), dtype)]

    integers = dict.fromkeys(conditions, 2)
    row = Elementwise(
        name,
        _binder(name, count, accepts, conditions),
        infer,
        _planner(name, formula, flops),
        rules,
        oracle,
        _cases(count, integers),
        signature="(...)" + ",(...)" * (count - 1) + "->(...)",
        wrong=Case(((2, 3),) * (count - 1) + ((4,),), integers=integers) if count > 1 else None,
        large=Case(((1000, 1000),) * count, integers=integers),
        doc=(formula.__doc__ or "").split("\n")[0],
        formula=formula,
        flops=flops,
        **options,
    )
    return row if fast is None else replace(row, fast=_fast_row(row, fast), _plans={})


def _fast_row(row: Elementwise, fast: Fast) -> Elementwise:
    assert row.vjp is not None
    (rule,) = row.vjp
    if fast.slope is not None and rule is not None:
        rule = with_slope(fast.slope, rule)
    return replace(
        row,
        plan=_planner(row.name, fast.formula, fast.flops),
        vjp=(rule,),
        ulp=fast.ulp,
        magnitude=fast.magnitude,
        dtypes=("float32",),
        formula=fast.formula,
        flops=fast.flops,
        accuracy=FAST,
        relative_to=fast.relative_to,
        _plans={},
    )


def _binder(
    name: str, count: int, accepts: Accepts, conditions: Sequence[int]
) -> Callable[..., BoundArguments]:
    """Return the `bind` of an elementwise row: its operands as tensors of one dtype, conditions as bools."""
    values = [k for k in range(count) if k not in conditions]

    def bind(*args: Any) -> BoundArguments:
        if len(args) != count:
            raise TypeError(f"{name}: {len(args)} operands given, expected {count}")
        if not conditions:
            first = args[0]
            if type(first) is Tensor and first._data.dtype.kind == "f" and accepts != "bool":
                dtype = first._data.dtype
                for a in args:
                    if type(a) is not Tensor or a._data.dtype is not dtype:
                        break
                else:
                    return args, {}  # the usual case, in a third of the time
                if count == 2 and (type(args[1]) is float or type(args[1]) is int):
                    return (first, constant(args[1], dtype, name)), {}
            return promoted(name, args, accepts), {}
        operands = dict(zip(values, promoted(name, tuple(args[k] for k in values), accepts), strict=True))
        for k in conditions:
            operands[k] = promoted(name, (args[k],), "bool")[0]
        return tuple(operands[k] for k in range(count)), {}

    return bind
