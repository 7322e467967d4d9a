"""Kernels in plain Numba, as ops with a gradient rule."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treepie.kernels.own import OwnKernel, Static, work_ns
from treepie.kernels.own_code import where
from treepie.kernels.program import Launch, Operand, Spec

from .. import tape
from ..arguments import as_tensor, shape_of
from ..promotion import constant
from ..table import Attributes, BoundArguments, Op
from ..tensor import DType, Tensor, check_dtype, float32
from ..trace.number import Number
from .function import OwnFunction

#: A rule of shapes: (specs of the inputs, static arguments) -> one spec or several.
Rule = Callable[..., Any]

#: Exceptions of a kernel that are raised as they are, with the line in their text.
_RAISED = (ValueError, AssertionError, ZeroDivisionError, IndexError, FloatingPointError)

Array = NDArray[Any]

_STATIC = (str, bool, int, float, type(None))


def spec(shape: int | Sequence[int], dtype: DType) -> Spec:
    """Return the shape and dtype of an array, for the rules of `tp.kernel`.

    shape: sizes, or one for a vector.

    Raises ValueError for a negative size, TypeError for an unsupported dtype.

    >>> import treepie as tp
    >>> tp.spec((3, 4), tp.float32).shape
    (3, 4)
    """
    return Spec(shape_of("spec", shape), check_dtype("spec", dtype))


@dataclass(frozen=True, eq=False, repr=False)
class OwnOp(Op):
    """The op of a kernel of one's own.

    rule: (g, result, *arguments, **statics) -> the gradients of all arguments, or None.
    """

    owner: Any = None
    rule: Callable[..., Any] | None = None

    def pull_back(
        self, node: tape.Node, gradients: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Return the gradients that the user's rule returns."""
        if self.rule is None:
            raise TypeError(
                f"{self.owner} has no gradient rule: give it one with @{self.name}.defvjp, or use "
                "stop_gradient on its inputs"
            )
        filled = [
            Tensor(np.zeros(a.shape, a.dtype), None) if g is None else g
            for g, a in zip(gradients, node.outputs, strict=True)
        ]
        results = node.results()
        g, y = (filled[0], results[0]) if len(filled) == 1 else (tuple(filled), tuple(results))
        found = self.rule(g, y, *node.inputs, **node.attributes)
        return _gradients(self, found, node.inputs)


def _gradients(op: OwnOp, found: Any, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """Return a gradient for each input, or raise for another number, shape or dtype of them."""
    rule = op.rule
    listed = list(found) if isinstance(found, tuple | list) else [found]
    if isinstance(rule, Kernel) and len(listed) < len(inputs):  # it makes those of the floats
        remaining = iter(listed)
        listed = [next(remaining, None) if t.dtype.kind == "f" else None for t in inputs]
    at = where(rule) if isinstance(rule, FunctionType) else repr(rule)
    at = at.replace("kernel _ (", f"the gradient rule of {op.name} (").replace(
        "kernel <lambda> (", "the rule ("
    )
    if len(listed) != len(inputs):
        raise TypeError(
            f"{at} returned {len(listed)} gradients, expected {len(inputs)}, one for each argument of "
            f"{op.owner}, None for one without"
        )
    for k, (x, t) in enumerate(zip(listed, inputs, strict=True)):
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{at} returned a {type(x).__name__} for argument {k}, expected a tensor or None")
        if x.shape != t.shape or x.dtype != t.dtype:
            raise ValueError(
                f"{at} returned a gradient of shape {x.shape} and dtype {x.dtype.name} for argument {k}, "
                f"expected {t.shape} and {t.dtype.name}"
            )
    return listed


class Kernel(OwnFunction):
    """A kernel of one's own; see `kernel`."""

    def __init__(
        self,
        function: Callable[..., Any],
        out: Rule,
        scratch: Rule | None,
        rows: Callable[..., int] | None,
        flops: float,
        fastmath: bool | set[str],
    ) -> None:
        super().__init__(function)
        self._out, self._scratch, self._rows = out, scratch, rows
        self._flops = flops
        self.inputs = tuple([p.name for p in inspect.signature(out).parameters.values() if _is_positional(p)])
        parameters = inspect.signature(function).parameters.values()
        self._defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        names = [p.name for p in parameters if _is_positional(p)]
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters) or len(names) < 2:
            raise TypeError(
                f"{self!r} takes {inspect.signature(function)}, expected (rows, inputs, outputs, ...)"
            )
        if tuple(names[1 : 1 + len(self.inputs)]) != self.inputs:
            raise TypeError(
                f"{self!r}: out takes ({', '.join(self.inputs)}), and after rows the kernel "
                f"({', '.join(names[1:])}), expected the same inputs first"
            )
        self._fastmath = fastmath if isinstance(fastmath, bool) else frozenset(fastmath)

    def __call__(self, *arguments: Any, **statics: Any) -> Any:
        """Run the kernel on tensors, arrays or numbers; returns a tensor, or a tuple of them."""
        return self.op.apply(*self._bind(*arguments, **statics))

    def defvjp(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Set the gradient rule, and return it.

        rule: (g, y, *inputs, **statics) -> a gradient for each input, None for one without. g: the gradient
            of the result y; tuples where there are several outputs. It is a pure function, written in ops, so
            that gradients nest, or another kernel, which makes the gradients of all float inputs at once.
        """
        self._set_rule(rule)
        return rule

    def _make(self) -> Op:
        compiled = OwnKernel(self.function, len(self.inputs), self._fastmath)
        return OwnOp(
            name=self.__name__,
            bind=self._bind,
            infer=lambda *specs, **statics: self.output_specs(specs, statics),
            plan=functools.partial(self._plan, compiled),
            vjp=tuple([lambda *_, **__: None] * len(self.inputs)),
            oracle=_no_oracle,
            cases=(),
            failure=self._failure,
            owner=self,
            rule=self.rule,
        )

    def _bind(self, *arguments: Any, **statics: Any) -> BoundArguments:
        if len(arguments) != len(self.inputs):
            raise TypeError(
                f"{self!r}: {len(arguments)} arguments given, expected {len(self.inputs)}: "
                f"{', '.join(self.inputs)}"
            )
        tensors = [None if _is_number(a) else self._tensor(k, a) for k, a in enumerate(arguments)]
        floats = (t.dtype for t in tensors if t is not None and t.dtype.kind == "f")
        dtype = next(floats, np.dtype(float32))
        filled = [self._number(a, dtype) if t is None else t for t, a in zip(tensors, arguments, strict=True)]
        for name in statics:
            if name not in self._defaults:
                known = ", ".join(self._defaults) or "none"
                raise TypeError(f"{self!r}: no argument {name}, expected of {known}")
        return tuple(filled), {n: self._static(n, statics.get(n, d)) for n, d in self._defaults.items()}

    def _number(self, number: Any, dtype: np.dtype) -> Tensor:
        """Return a number as a tensor: a float of the dtype of the other floats, others as they are."""
        sample = number.sample if type(number) is Number else number
        own = dtype if type(sample) is float else np.asarray(sample).dtype
        return constant(number, own, self.__name__)

    def _tensor(self, k: int, argument: Any) -> Tensor:
        try:
            return as_tensor(argument)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{self!r}: {self.inputs[k]} is of type {type(argument).__name__}, expected a tensor, an "
                f"array or a number ({error})"
            ) from None

    def _static(self, name: str, value: Any) -> Static:
        value = value.item() if isinstance(value, np.generic) else value
        if value is inspect.Parameter.empty:
            raise TypeError(f"{self!r}: {name} is missing")
        if type(value) is Number:
            raise TypeError(
                f"{self!r}: {name} is an argument of a jitted function, expected one of its static "
                "arguments, or an input of the kernel"
            )
        if not isinstance(value, _STATIC):
            raise TypeError(
                f"{self!r}: {name} is a {type(value).__name__}, expected a number, a text, a bool or None"
            )
        return value

    def gradients_of(self, tensors: Sequence[Tensor], statics: Attributes) -> list[Tensor | None]:
        """Return what the gradient rule gives for gradients of 1 of all results."""
        op = self.op
        assert isinstance(op, OwnOp)
        results = op.run(tuple(tensors), statics)
        ones = [Tensor(np.ones(t.shape, t.dtype), None) for t in results]
        single = len(results) == 1
        g, y = (ones[0], results[0]) if single else (tuple(ones), results)
        assert op.rule is not None
        return _gradients(op, op.rule(g, y, *tensors, **statics), tensors)

    # ---- the row
    def _ruled(self, what: str, rule: Rule, specs: Sequence[Spec], statics: Attributes) -> list[Spec]:
        """Return the specs that a rule gives."""
        taken = inspect.signature(rule).parameters
        known = {n: v for n, v in statics.items() if n in taken}
        found = rule(*specs, **known)
        listed = list(found) if isinstance(found, tuple | list) else [found]
        for each in listed:
            if not isinstance(each, Spec):
                raise TypeError(f"{self!r}: {what} returned {found!r}, expected tp.spec(shape, dtype)")
        return listed

    def output_specs(self, specs: Sequence[Spec], statics: Attributes) -> list[Spec]:
        """Return the specs of the outputs."""
        return self._ruled("out", self._out, specs, statics)

    def scratch_specs(self, specs: Sequence[Spec], statics: Attributes) -> list[Spec]:
        """Return the specs of scratch memory."""
        return self._ruled("scratch", self._scratch, specs, statics) if self._scratch else []

    def row_count(self, specs: Sequence[Spec], first: tuple[int, ...]) -> int:
        """Return the length of the axis that is cut into ranges. first: the shape of the first output."""
        return int(self._rows(*specs)) if self._rows else first[0] if first else 1

    def _plan(
        self,
        compiled: OwnKernel,
        inputs: list[Operand],
        outputs: list[Operand],
        scratch: Any,
        **statics: Any,
    ) -> list[Launch]:
        specs = [x.spec for x in inputs]
        needed = self.scratch_specs(specs, statics)
        arrays = [*inputs, *outputs, *(scratch(s.shape, s.dtype) for s in needed)]
        arrays = [a if a.shape else a.reshaped(1) for a in arrays]
        if len(arrays) != len(compiled.arrays):
            raise TypeError(
                f"{self!r} takes the arrays {', '.join(compiled.arrays)}, and its rules name "
                f"{len(inputs)} inputs, {len(outputs)} outputs and {len(needed)} of scratch"
            )
        count = self.row_count(specs, outputs[0].shape)
        return [compiled.launch(count, work_ns(arrays, self._flops), arrays, statics)]

    # ---- the function in Python
    def run_in_python(self, tensors: Sequence[Tensor], statics: Attributes) -> list[Array]:
        """Run the function in Python, on inputs that it can not write to; return the outputs."""
        specs = [Spec(t.shape, t.dtype) for t in tensors]
        outputs = [_unwritten(s) for s in self.output_specs(specs, statics)]
        scratch = [_unwritten(s) for s in self.scratch_specs(specs, statics)]
        inputs = [t.array.copy() for t in tensors]
        for a in inputs:
            a.flags.writeable = False
        arrays = [a.reshape(a.shape or 1) for a in (*inputs, *outputs, *scratch)]
        if any(a.size for a in outputs):
            count = self.row_count(specs, outputs[0].shape)
            with np.errstate(all="ignore"):
                self.function(range(count), *arrays, **statics)
        return outputs

    def line_of(self, error: BaseException) -> tuple[str, str]:
        """Return the place in the function's file where an error was raised, and the text of that line."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if f.filename == self.function.__code__.co_filename]
        if not own:
            return repr(self), ""
        return f"{Path(own[-1].filename).name}, line {own[-1].lineno}", own[-1].line or ""

    def _failure(self, *inputs: Tensor, **statics: Any) -> Exception:
        """Return the exception that the function raises; compiled, it tells only that it has raised one."""
        try:
            self.run_in_python(inputs, statics)
        except Exception as error:
            text = f"{self.__name__}: {error} ({self.line_of(error)[0]})"
            known = type(error) in (
                ValueError,
                AssertionError,
                ZeroDivisionError,
                IndexError,
                FloatingPointError,
            )
            return type(error)(text) if known else RuntimeError(f"{type(error).__name__}: {text}")
        return RuntimeError(f"{self!r} raises an exception where it is compiled, and none in Python")


def _unwritten(spec: Spec) -> Array:
    """Return an array that a kernel is to fill."""
    return np.full(spec.shape, np.nan if spec.dtype.kind == "f" else 0, spec.dtype)


def _is_number(argument: Any) -> bool:
    return isinstance(argument, int | float) or type(argument) is Number


def _is_positional(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)


def _no_oracle(*_: Any, **__: Any) -> Any:
    raise NotImplementedError


def kernel(
    *,
    out: Rule,
    scratch: Rule | None = None,
    rows: Callable[..., int] | None = None,
    flops: float = 20.0,
    fastmath: bool | set[str] = False,
) -> Callable[[Callable[..., Any]], Kernel]:
    """Make an op of a function in plain Numba.

    The function is called with `rows`, a range of indices of the first axis of its first output, and with
    arrays: inputs, which it may not write to, then outputs, which it fills in those rows, then scratch. A
    tensor of shape () is an array of shape (1,). Ranges run on different threads at once, and depend on
    shapes alone. The function is compiled when it is first used, once for each combination of dtypes, and
    cached on disk under a digest of its code and of all that it calls, which needs no decorator.
    Keyword-only parameters are static arguments: numbers, texts, bools and None. Division by zero gives inf
    or NaN. An exception that it raises is raised to the caller, with its line; indices are not checked. It
    allocates no memory, so that it has loops in place of array expressions.

    out: (specs of the inputs) -> `tp.spec` of the output, or a tuple of several; takes static arguments by
        their names, if it has such parameters. It raises ValueError for shapes that do not fit.
    scratch: the same, of uninitialized arrays after the outputs, that all ranges have in common.
    rows: (specs of the inputs) -> the length of the axis that is cut into ranges, where it is another one.
    flops: operations for each element of its largest array; decides whether threads share the work.
    fastmath: of Numba: {"reassoc"} lets sums be reordered, so that they are vectorised; True also assumes
        that nothing is NaN.

    Returns a `Kernel`, whose `defvjp` sets its gradient rule. Source: the forms of Numba's `guvectorize` and
    of `jax.custom_vjp`.

    >>> import treepie as tp
    >>> @tp.kernel(out=lambda x: tp.spec(x.shape[:1], x.dtype))
    ... def row_sums(rows, x, out):
    ...     for i in rows:
    ...         out[i] = x[i].sum()
    >>> @row_sums.defvjp
    ... def _(g, y, x):
    ...     return g[:, None] + tp.zeros_like(x)
    >>> row_sums(tp.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [3.0, 7.0]
    >>> tp.grad(lambda x: row_sums(x)[0])(tp.ones((2, 2))).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    return lambda function: Kernel(function, out, scratch, rows, flops, fastmath)
