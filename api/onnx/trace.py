"""A model's evaluation as a graph of ops, traced on symbolic tensors at several batch sizes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff import Tensor, ptree
from treepie.autodiff.ptree.structure import Flattened
from treepie.autodiff.trace import active
from treepie.autodiff.trace.entry import Symbol, root
from treepie.autodiff.trace.trace import Trace
from treepie.kernels.frames import user_line

from ..layer.core import Layer, Vars
from .size import BatchSize, Nonlinear, Sizes, merged

#: The batch sizes of the traces where the batch is free: two determine a linear function, the third confirms
#: it. Sizes that models have elsewhere, and that Python might compare with the batch's, are not like these.
_BATCHES = (11, 13, 17)

#: What a user may do where a model depends on the batch size.
FIX_BATCH = "pass a fixed batch size, such as input_shape=(1, ...)"


@dataclass(frozen=True)
class Value:
    """A value of the graph: an input, a result, or a constant with its elements.

    shape: its sizes.  array: the elements of a constant; of size 1 along an axis of the batch's size.
    path: that of a parameter or a state in its tree, else None.
    is_range: whether it is 0, 1, ... batch - 1, which has no array.
    """

    shape: Sizes
    dtype: np.dtype
    array: NDArray[Any] | None = None
    path: str | None = None
    is_range: bool = False


@dataclass(frozen=True)
class Call:
    """A call of an op.

    inputs: value numbers.  first: the value number of the first output, which the others follow.
    layer: the names of the layers that called it, outermost first.  line: of the user's code.
    """

    op: Any
    inputs: tuple[int, ...]
    first: int
    count: int
    attributes: dict[str, Any]
    layer: tuple[str, ...]
    line: str

    @property
    def outputs(self) -> range:
        """The value numbers of the outputs."""
        return range(self.first, self.first + self.count)


@dataclass(frozen=True)
class Traced:
    """The graph. inputs, outputs: name in the file -> value number."""

    values: list[Value]
    calls: list[Call]
    inputs: dict[str, int]
    outputs: dict[str, int]


class _LayerTrace(Trace):
    """A trace whose entries note the layers that called their ops, and the line of the user's code."""

    def add(self, *arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        """Record a call of an op."""
        results = super().add(*arguments, **options)
        self.entries[-1].line = (_layers(), user_line())
        return results


def _layers() -> tuple[str, ...]:
    """Return the names of the layers that are being applied, outermost first."""
    names, frame = [], sys._getframe(2)
    while frame is not None:
        if frame.f_code is Layer._applied.__code__:
            names.append(frame.f_locals["self"].name)
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(names[::-1])


def _reads(line: str) -> Exception:
    return ValueError(
        f"onnx.save: {line} reads the elements of a tensor, which a file can not do: expected ops alone, "
        "such as tp.where in place of an `if`"
    )


@dataclass
class _Run:
    """One trace: its values and entries, and the numbers of the values that are inputs and outputs."""

    values: list[Any]
    entries: list[Any]
    inputs: list[int]
    outputs: list[tuple[str, int]]


def trace(
    model: Layer,
    vars: Vars,
    shapes: Mapping[str, tuple[Sequence[int | None], np.dtype]],
    build: Callable[[Sequence[Tensor]], Any],
) -> Traced:
    """Return the graph of a model in evaluation mode.

    shapes: name of an input -> its shape, None for the batch, and its dtype.
    build: (the inputs' tensors) -> the model's input.
    """
    paths: dict[int, str] = {}
    names: set[str] = set()
    for name, tree in (("params", vars.params), ("state", vars.state)):
        for path, t in ptree.flatten_with_paths(tree):
            ambiguous = not path or path in names
            paths.setdefault(id(t.array), f"{name}.{path}".rstrip(".") if ambiguous else path)
            names.add(path)
    free = any(None in shape for shape, _ in shapes.values())
    batches = _BATCHES if free else (1,)
    runs = [
        _run(
            model,
            vars,
            [(tuple(n if k is None else k for k in shape), dtype) for shape, dtype in shapes.values()],
            build,
        )
        for n in batches
    ]
    first = runs[0]
    calls = _calls(runs, batches)
    where = {n: call for call in calls for n in (*call.outputs, *call.inputs)}
    values = [
        _value(k, [run.values[k] for run in runs], batches, paths, where.get(k))
        for k in range(len(first.values))
    ]
    inputs = dict(zip(shapes, first.inputs, strict=True))
    return Traced(values, calls, inputs, dict(first.outputs))


def _run(
    model: Layer,
    vars: Vars,
    specs: Sequence[tuple[tuple[int, ...], np.dtype]],
    build: Callable[[Sequence[Tensor]], Any],
) -> _Run:
    trace = _LayerTrace(root(), user=False, refuse=_reads)
    tensors = [Tensor(trace.symbol(shape, dtype), None) for shape, dtype in specs]
    try:
        y, _ = active.call_under(trace, lambda: model.apply(vars, build(tensors)))
        Flattened("onnx.save: the output", y, numbers=False)  # which refuses what is no tree of tensors
        outputs = [
            (f"output.{path}" if path else "output", trace.number_of(t))
            for path, t in ptree.flatten_with_paths(y)
        ]
        inputs = [trace.number_of(t) for t in tensors]
        return _Run(list(trace.values), list(trace.entries), inputs, outputs)
    finally:
        trace.end()


def _calls(runs: Sequence[_Run], batches: Sequence[int]) -> list[Call]:
    """Return the entries of all traces as one list of calls."""
    if len({(len(run.entries), len(run.values), tuple(run.outputs)) for run in runs}) > 1:
        raise ValueError(f"onnx.save: the model calls other ops for another batch size; {FIX_BATCH}")
    calls = []
    for entries in zip(*[run.entries for run in runs], strict=True):
        first = entries[0]
        layers, line = first.line
        if any(
            (e.op, e.inputs, len(e.outputs)) != (first.op, first.inputs, len(first.outputs)) for e in entries
        ):
            raise ValueError(
                f"onnx.save: {first.op.name} in {line} is another op for another batch size; {FIX_BATCH}"
            )
        attributes = {
            name: _merged(
                f"{first.op.name} in {line}: {name}", [e.attributes[name] for e in entries], batches
            )
            for name in first.attributes
        }
        calls.append(Call(first.op, first.inputs, first.first, len(first.outputs), attributes, layers, line))
    return calls


def _merged(what: str, values: Sequence[Any], batches: Sequence[int]) -> Any:
    try:
        return merged(values, batches)
    except Nonlinear:
        texts = " and ".join(str(v) for v in values[:2])
        raise ValueError(
            f"onnx.save: {what} is {texts} for batches of {batches[0]} and {batches[1]}, expected a linear "
            f"function of the batch size; {FIX_BATCH}"
        ) from None


def _value(
    number: int, same: Sequence[Any], batches: Sequence[int], paths: Mapping[int, str], call: Call | None
) -> Value:
    """Return a value of all traces as one."""
    first = same[0]
    what = "a value" if call is None else f"an operand or result of {call.op.name} in {call.line}"
    shape = _merged(f"the shape of {what}", [v.shape for v in same], batches)
    if isinstance(first, Symbol):
        return Value(shape, first.dtype)
    array = first.array
    if id(array) in paths:
        return Value(shape, array.dtype, array, paths[id(array)])
    arrays = [t.array for t in same]
    if shape == (BatchSize(1),) and all(
        a.dtype.kind == "i" and np.array_equal(a, np.arange(len(a))) for a in arrays
    ):
        return Value(shape, array.dtype, is_range=True)
    parts = [_narrowed(a, shape) for a in arrays]
    # Along the batch all elements are equal, and they are the same ones for each batch size.
    if any(
        p.tobytes() != parts[0].tobytes() or np.broadcast_to(p, a.shape).tobytes() != a.tobytes()
        for p, a in zip(parts, arrays, strict=True)
    ):
        raise ValueError(
            f"onnx.save: the elements of {what}, a constant, depend on the batch size; {FIX_BATCH}"
        )
    return Value(shape, array.dtype, parts[0])


def _narrowed(array: NDArray[Any], shape: Sizes) -> NDArray[Any]:
    """Return the first element alone along axes whose size depends on the batch."""
    for axis, n in enumerate(shape):
        if not isinstance(n, int):
            array = array.take([0], axis)
    return array
