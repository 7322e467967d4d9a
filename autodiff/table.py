"""The op table: one row per op, from which running, differentiating, testing and benchmarking all read.

A row is a function under `@op(...)` or `@elementwise(...)`. Arrays are its positional arguments, and
traced; everything else is keyword attributes. A VJP is a function per argument, written in ops, so that
gradients nest; an op without one says `nondifferentiable=True`, and differentiating through it raises.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Protocol, TypeVar, cast, overload

import numpy as np

from treepie.kernels import threads
from treepie.kernels.compilations import compilations
from treepie.kernels.program import Launch, LaunchTable, Operand, Spec

from . import tape
from .calls import call_error
from .case import Attributes as Attributes, Case as Case, Shape as Shape
from .plan import Plan, checked
from .tensor import DType, Tensor
from .trace import active
from .trace.repeat import call_by_name

P = ParamSpec("P")
R = TypeVar("R")
#: The result of a row's `bind`: tensors, and the attributes of the call.
BoundArguments = tuple[tuple["Tensor", ...], Attributes]
#: A shape rule: (input specs, attributes) -> output specs.
ShapeRule = Callable[..., Sequence[Spec]]
#: A VJP rule of one argument: (g, result, *arguments, **attributes) -> its gradient, or None for zero.
VJP = Callable[..., Tensor | None]

#: Plans cached per row, a few kB each: bounds memory where every batch has another shape.
_MOST_PLANS = 1000

#: Operands of up to this many elements are checked in Python before the kernel runs.
_MOST_CHECKED = 1 << 16

#: The table: name -> row.
OPS: dict[str, Op] = {}


@dataclass(frozen=True, eq=False)
class Op:
    """A row of the table. Calling it runs the op, and records it on the tape during differentiation.

    bind: (arguments of the user) -> tensors, attributes; raises for invalid arguments.
    infer: (input specs, attributes) -> output specs, the shape rule.
    plan: (inputs, outputs, scratch, attributes) -> kernel launches; `scratch(shape, dtype)` is an operand.
    epilogue: whether `plan` takes `epilogue=`, elementwise ops fused into the kernel of its first result.
    view: (array, attributes) -> a view, for ops that run no kernel.
    offset: (input spec, attributes) -> the element at which a view begins.
    joins: (input specs, attributes) -> whether the result is the inputs, one after another in memory.
    vjp: a rule per argument; None for one that gets no gradient.
    shared: (g, result, *arguments, **attributes) -> the value that all rules get in place of g: often all
        gradients, computed by one kernel, of which each rule picks one (see `pick`).
    failure: (tensors, attributes) -> the error to raise when a kernel reported one.
    checked: (input specs, attributes) -> (operand, least, largest) of operands whose elements have a range.
    oracle: NumPy in float64, taking the arguments and attributes of `bind`.
    variadic: any number of arguments; the one VJP rule gets the position as the keyword `argument`.
    domain: interval where the op is smooth, from which test operands are drawn; a dict has one per argument.
    distinct: test operands have well separated elements, since ties are kinks of the op.
    ulp: bound on the result's error, in units in the last place of `magnitude`.
    magnitude: (arguments, attributes) -> the size of the terms of a sum, where they can cancel;
        by default the largest element of the result; for an elementwise row each element's own size, which
        `op_accuracy` sweeps in float32.
    second_order: whether the gradient of the gradient is checked too.
    recycled: results reuse freed memory (see `kernels/memory.py`).
    effect: calls act on something outside, such as other ranks: all run, once each and in order, in programs
        too, and their plans, which hold that, are not cached.
    in_place: an output may share the memory of an input of its size: the kernel works element by element.
    wrong: a case whose shapes must be rejected.  large: the benchmark's case.
    """

    name: str
    bind: Callable[..., tuple[tuple[Tensor, ...], Attributes]]
    infer: ShapeRule
    plan: Callable[..., list[Launch]] | None
    vjp: tuple[VJP | None, ...] | None
    oracle: Callable[..., Any]
    cases: tuple[Case, ...]
    signature: str = ""
    view: Callable[..., Any] | None = None
    offset: Callable[..., int] = lambda spec, **attributes: 0
    joins: Callable[..., bool] | None = None
    shared: Callable[..., Any] | None = None
    nondifferentiable: bool = False
    failure: Callable[..., Exception] | None = None
    checked: Callable[..., Sequence[tuple[int, float, float]]] | None = None
    variadic: bool = False
    domain: tuple[float, float] | dict[int, tuple[float, float]] = (-2.0, 2.0)
    distinct: bool = False
    ulp: float = 4.0
    magnitude: Callable[..., Any] | None = None
    wrong: Case | None = None
    large: Case | None = None
    dtypes: tuple[str, ...] = ("float32", "float64")
    second_order: bool = True
    recycled: bool = False
    effect: bool = False
    in_place: bool = False
    epilogue: bool = False
    doc: str = ""
    _plans: dict[Any, Plan] = field(default_factory=dict)

    @property
    def differentiable(self) -> bool:
        """Whether a gradient passes to any argument."""
        return self.vjp is not None and any(self.vjp)

    @functools.cached_property
    def recorded(self) -> bool:
        """Whether the tape records its calls: results of a row whose rules are all None are constants."""
        return self.vjp is None or any(self.vjp)

    def __repr__(self) -> str:
        """Show the name."""
        return f"Op({self.name})"

    def __str__(self) -> str:
        """Return the name, as test reports show it."""
        return self.name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the op on arguments of the user."""
        return self.apply(*self.bind(*args, **kwargs))

    def caller(self, explain: Callable[[Any, Any], TypeError | None]) -> Callable[..., Any]:
        """Return a function that calls the row, with fewer Python calls. explain: `call_error` of the row."""
        bind, apply, row = self.bind, self.apply, self

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                if (trace := active.state.trace) is not None and trace.user and not kwargs:
                    return call_by_name(trace, row, args)
                return apply(*bind(*args, **kwargs))
            except TypeError:
                if (error := explain(args, kwargs)) is not None:
                    raise error from None
                raise

        return call

    def apply(self, inputs: tuple[Tensor, ...], attributes: Attributes) -> Any:
        """Run the op on tensors; return a tuple where it has several outputs."""
        now = active.state
        trace, gradients = now.trace, now.gradients
        if trace is not None and not trace.closed and not now.captures:
            results = trace.add(self, inputs, attributes, gradients if self.recorded else ())
        else:
            results = (self.compute if trace is None else self.run)(inputs, attributes)
            if gradients and self.recorded:
                tape.record(self, inputs, attributes, results)
        return results[0] if len(results) == 1 else results

    def run(self, inputs: tuple[Tensor, ...], attributes: Attributes) -> tuple[Tensor, ...]:
        """Compute the outputs without recording them on the tape; an active trace gets an entry."""
        trace = active.state.trace
        if trace is not None and not trace.closed:
            return trace.add(self, inputs, attributes)
        return self.compute(inputs, attributes)

    def compute(self, inputs: tuple[Tensor, ...], attributes: Attributes) -> tuple[Tensor, ...]:
        """Compute the outputs, whether or not a trace is active."""
        if self.view is not None:
            return (Tensor(self.view(inputs[0].array, **attributes), None),)
        key: list[Any] = [repr(v) if type(v) is float else v for v in attributes.values()]
        arrays = []
        for t in inputs:
            data: Any = t._data
            if type(data) is not np.ndarray:
                data = t.array
            arrays.append(data)
            key += (data.shape, data.dtype)
        plan = self._plans.get(tuple(key)) or self.planned([(a.shape, a.dtype) for a in arrays], attributes)
        outputs = plan.small() or plan.results(self.name, self.recycled)
        if plan.direct is not None:
            arrays += [t._data for t in outputs]
            if plan.scratch:
                arrays += plan.scratch_buffers(self.name)
            failed = plan.direct(*arrays) is not None
        else:
            failed = plan.run(inputs, outputs, self.name)
        if failed:
            raise self.error(inputs, attributes)
        return tuple(outputs)

    def error(self, inputs: Sequence[Tensor], attributes: Attributes) -> Exception:
        """Return the error to raise where a kernel reported one."""
        return self.failure(*inputs, **attributes) if self.failure else RuntimeError(f"{self} failed")

    def fails(self, inputs: Sequence[Any], attributes: Attributes) -> bool:
        """Whether operands that are arrays of moderate size have elements outside of their range."""
        if self.checked is None:
            return False
        for k, least, largest in self.checked(*inputs, **attributes):
            x = inputs[k]
            looked = type(x) is np.ndarray and 0 < x.size <= _MOST_CHECKED
            if looked and (x.min() < least or x.max() > largest):
                return True
        return False

    def outputs(self, inputs: Sequence[Any], attributes: Attributes) -> list[tuple[Shape, np.dtype]]:
        """Return the shapes and dtypes of the outputs for inputs that have these attributes."""
        specs = checked(self.name, self.infer(*[Spec(x.shape, x.dtype) for x in inputs], **attributes))
        return [(s.shape, s.dtype) for s in specs]

    def planned(self, inputs: Sequence[tuple[Shape, np.dtype]], attributes: Attributes) -> Plan:
        """Return the launches for inputs of some shapes and dtypes."""
        if self.effect:
            return self._plan([Spec(*spec) for spec in inputs], attributes)
        key: list[Any] = [repr(v) if type(v) is float else v for v in attributes.values()]
        for spec in inputs:
            key += spec
        plan = self._plans.get(tuple(key))
        if plan is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            with compilations.watch():
                plan = self._plans[tuple(key)] = self._plan([Spec(*spec) for spec in inputs], attributes)
        return plan

    def _plan(self, specs: list[Spec], attributes: Attributes) -> Plan:
        results, sizes = checked(self.name, self.infer(*specs, **attributes)), list[int]()

        def scratch(shape: Shape, dtype: DType) -> Operand:
            spec = Spec(shape, np.dtype(dtype))
            sizes.append(spec.nbytes)
            return Operand(len(specs) + len(results) + len(sizes) - 1, spec)

        operands = [Operand(k, s) for k, s in enumerate((*specs, *results))]
        assert self.plan is not None
        launches = []
        if any(s.size for s in results):
            launches = self.plan(operands[: len(specs)], operands[len(specs) :], scratch, **attributes)
        table = LaunchTable(launches) if launches else None
        return Plan(tuple((s.shape, s.dtype) for s in results), tuple(sizes), table, tuple(launches))

    def pull_back(
        self, node: tape.Node, gradients: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Return the gradients of a recorded call's inputs, where needed, from those of its outputs."""
        if self.vjp is None:
            raise TypeError(f"{self.name} is not differentiable; use stop_gradient on its input")
        single = len(node.outputs) == 1
        g = gradients[0] if single else tuple(gradients)
        ans = node.results()[0] if single else node.results()
        if self.shared is not None:
            g = self.shared(g, ans, *node.inputs, **node.attributes)
        rules: Sequence[VJP | None] = self.vjp
        if self.variadic:
            assert self.vjp[0] is not None
            rules = [functools.partial(self.vjp[0], argument=k) for k in range(len(needs))]
        return [
            rule(g, ans, *node.inputs, **node.attributes) if need and rule is not None else None
            for rule, need in zip(rules, needs, strict=True)
        ]


def pick(argument: int) -> VJP:
    """Return the rule that picks an argument's gradient from the sequence that `shared` returned."""
    return lambda gradients, *_, **attributes: gradients[argument]


@dataclass(frozen=True, eq=False, repr=False)
class Composite(Op):
    """A row without a kernel: `bind` is the whole function, written in other ops.

    Its gradient comes from theirs. It is in the table for its tests, its benchmark and its documentation.
    """

    @property
    def differentiable(self) -> bool:
        """Whether a gradient passes to any argument."""
        return not self.nondifferentiable

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.bind(*args, **kwargs)


def _forget_plans() -> None:
    for row in OPS.values():
        row._plans.clear()


threads.on_change(_forget_plans)


def register(row: Op) -> Op:
    """Add a row to the table."""
    if row.name in OPS:
        raise ValueError(f"op {row.name!r} is already in the table")
    if not isinstance(row, Composite) and (row.vjp is None) != row.nondifferentiable:
        raise ValueError(f"op {row.name!r} needs a vjp, or nondifferentiable=True")
    OPS[row.name] = row
    return row


def public(row: Op, function: Callable[..., Any], signature: inspect.Signature) -> Any:
    """Return a row as the function that users call: the name and docstring of `function`, a signature."""
    caller = row.caller(lambda args, kwargs: call_error(call, row.name, args, kwargs))
    call: Any = functools.wraps(function)(caller)
    call.__signature__ = signature
    call.__annotations__ = {k: p.annotation for k, p in signature.parameters.items()}
    call.__annotations__["return"] = signature.return_annotation
    call.op, call.explained = row, True
    return call


class Decorator(Protocol):
    """Turns a `bind` into a row, called by a function of the same parameters that returns a tensor."""

    def __call__(self, bind: Callable[P, BoundArguments], /) -> Callable[P, Tensor]:
        """Return the function that users call."""


def shown(annotation: Any) -> str:
    """Return a type as source text, the form of annotations that are not evaluated."""
    return inspect.formatannotation(annotation).replace(f"{Tensor.__module__}.", "")


@overload
def op(
    *, infer: ShapeRule, oracle: Callable[..., Any], cases: Sequence[Case], returns: type[R], **options: Any
) -> Callable[[Callable[P, BoundArguments]], Callable[P, R]]: ...


@overload
def op(
    *, infer: ShapeRule, oracle: Callable[..., Any], cases: Sequence[Case], **options: Any
) -> Decorator: ...


def op(
    *,
    infer: ShapeRule,
    oracle: Callable[..., Any],
    cases: Sequence[Case],
    plan: Callable[..., list[Launch]] | None = None,
    vjp: VJP | tuple[VJP | None, ...] | None = None,
    returns: Any = Tensor,
    **options: Any,
) -> Callable[[Callable[..., BoundArguments]], Any]:
    """Make a row of the decorated function, which is its `bind`; see `Op` for the arguments.

    returns: the type of the results, the return annotation of the function that users call.
    """

    def decorate(bind: Callable[..., BoundArguments]) -> Any:
        rules = (vjp,) if callable(vjp) else vjp
        name = options.pop("name", None) or bind.__name__
        row = Op(
            name,
            bind,
            infer,
            plan,
            rules,
            oracle,
            tuple(cases),
            doc=(bind.__doc__ or "").split("\n")[0],
            **options,
        )
        signature = inspect.signature(bind).replace(return_annotation=shown(returns))
        return public(register(row), bind, signature)

    return decorate


def composite(
    *, oracle: Callable[..., Any], cases: Sequence[Case], **options: Any
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a row of a function that is written in other ops; see `Op` for the options."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        row = Composite(
            options.pop("name", function.__name__),
            cast(Any, function),
            _no_rule,
            None,
            None,
            oracle,
            tuple(cases),
            doc=(function.__doc__ or "").split("\n")[0],
            **options,
        )
        function.op = register(row)  # type: ignore[attr-defined]
        return function

    return decorate


def _no_rule(*specs: Spec, **attributes: Any) -> Sequence[Spec]:
    raise TypeError("a composite has no shape rule, only those of the ops that it calls")
