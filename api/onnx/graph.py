"""The nodes and initializers of an ONNX file, while it is built, and the operands that rules compute with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .size import BatchSize, Size, Sizes
from .trace import FIX_BATCH, Call, Value


class Node:
    """A node: the op's name, the names of inputs and outputs, and attributes."""

    __slots__ = ("attributes", "inputs", "op", "outputs")

    def __init__(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], attributes: dict[str, Any]
    ) -> None:
        self.op, self.inputs, self.outputs, self.attributes = op, tuple(inputs), tuple(outputs), attributes


class Graph:
    """Nodes in the order of computation, and initializers by name.

    batch: the name and the axis of an input whose size is the batch's; None where no batch is free.
    """

    def __init__(self, names: Sequence[str], batch: tuple[str, int] | None) -> None:
        """Begin without nodes. names: those in use, of the inputs and outputs."""
        self.nodes: list[Node] = []
        self.initializers: dict[str, NDArray[Any]] = {}
        self._used, self._batch = set(names), batch
        self._constants: dict[Any, str] = {}
        self._sizes: dict[Size, str] = {}

    def name(self, hint: str) -> str:
        """Return a name that is not in use: the hint, with a number where it is."""
        name, count = hint, 0
        while name in self._used:
            count += 1
            name = f"{hint}_{count}"
        self._used.add(name)
        return name

    def node(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Append a node."""
        self.nodes.append(Node(op, inputs, outputs, attributes))

    def initializer(self, array: NDArray[Any], hint: str) -> str:
        """Add a named array; return the name."""
        name = self.name(hint)
        self.initializers[name] = np.asarray(array, order="C")
        return name

    def constant(self, array: NDArray[Any]) -> str:
        """Return the name of an array; equal ones have one name."""
        key = (array.shape, array.dtype.str, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.initializer(array, "constant")
        return self._constants[key]

    def sizes(self, sizes: Sizes) -> str:
        """Return the name of integers, some of which may depend on the batch, as an int64 vector."""
        if all(isinstance(n, int) for n in sizes):
            return self.constant(np.array(sizes, np.int64))
        names = [self._size(n) for n in sizes]
        if len(names) == 1:
            return names[0]
        out = self.name("shape")
        self.node("Concat", names, [out], axis=0)
        return out

    def _size(self, n: Size) -> str:
        """Return the name of an integer, as a vector of one element."""
        if n in self._sizes:
            return self._sizes[n]
        if isinstance(n, int):
            return self.constant(np.array([n], np.int64))
        assert self._batch is not None
        if n == BatchSize(1):
            name, axis = self._batch
            out = self.name("batch")
            self.node("Shape", [name], [out], start=axis, end=axis + 1)
        elif n.offset:
            scaled, out = self._size(n - n.offset), self.name("size")
            self.node("Add", [scaled, self._size(n.offset)], [out])
        else:
            one, out = self._size(BatchSize(1)), self.name("size")
            self.node("Mul", [one, self._size(n.factor)], [out])
        self._sizes[n] = out
        return out

    def prune(self, outputs: Sequence[str]) -> None:
        """Remove nodes and initializers that no output depends on."""
        needed, nodes = set(outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                needed.update(node.inputs)
                nodes.append(node)
        self.nodes = nodes[::-1]
        self.initializers = {k: v for k, v in self.initializers.items() if k in needed}


class Term:
    """An operand or result of nodes in a rule, with Python's operators: `x * on.Sigmoid(x)`."""

    __slots__ = ("_on", "name")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, on: Emitter, name: str) -> None:
        self._on, self.name = on, name

    def __add__(self, other: Any) -> Term:
        """Return self + other."""
        return self._on.one("Add", self, other)

    def __sub__(self, other: Any) -> Term:
        """Return self - other."""
        return self._on.one("Sub", self, other)

    def __rsub__(self, other: Any) -> Term:
        """Return other - self."""
        return self._on.one("Sub", other, self)

    def __mul__(self, other: Any) -> Term:
        """Return self * other."""
        return self._on.one("Mul", self, other)

    def __truediv__(self, other: Any) -> Term:
        """Return self / other."""
        return self._on.one("Div", self, other)

    def __rtruediv__(self, other: Any) -> Term:
        """Return other / self."""
        return self._on.one("Div", other, self)

    def __neg__(self) -> Term:
        """Return -self."""
        return self._on.one("Neg", self)

    def __matmul__(self, other: Any) -> Term:
        """Return self @ other."""
        return self._on.one("MatMul", self, other)

    def __lt__(self, other: Any) -> Term:
        """Return self < other."""
        return self._on.one("Less", self, other)

    def __gt__(self, other: Any) -> Term:
        """Return self > other."""
        return self._on.one("Greater", self, other)

    __radd__, __rmul__ = __add__, __mul__


class Emitter:
    """Appends the nodes of one call: `on.Softmax(x, axis=-1)` appends a Softmax, and returns its result.

    Operands are terms, arrays, Python numbers, which get the dtype of the call's first operand, and tuples of
    sizes, which become int64 vectors.

    inputs, outputs: of the call.  dtype: of the first input, or of the first output where there is none.
    used: whether each output is an operand of a later call, or an output of the file.
    """

    def __init__(
        self,
        graph: Graph,
        call: Call,
        values: Sequence[Value],
        used: Sequence[bool],
        names: Callable[[int], str],
        producers: Mapping[int, Call],
    ) -> None:
        """Begin a call.

        names: value number -> name.  producers: value number -> the call that computes it.
        """
        self.graph, self.call, self.used = graph, call, used
        self.inputs = [values[n] for n in call.inputs]
        self.outputs = [values[n] for n in call.outputs]
        self.dtype = (self.inputs or self.outputs)[0].dtype
        self.producers, self._names = producers, names
        self._hint = "/".join([*call.layer[-1:], call.op.name])

    def term(self, number: int) -> Term:
        """Return a value by number."""
        return Term(self, self._names(number))

    def __getattr__(self, op: str) -> Callable[..., Term]:
        """Return the function that appends a node of an op."""
        if not op[:1].isupper():
            raise AttributeError(op)
        return functools.partial(self.one, op)

    def one(self, op: str, *operands: Any, **attributes: Any) -> Term:
        """Append a node of one output; return it."""
        return self.several(op, 1, *operands, **attributes)[0]

    def several(self, op: str, count: int, *operands: Any, **attributes: Any) -> list[Term]:
        """Append a node of several outputs; return them."""
        outputs = [self.graph.name(self._hint) for _ in range(count)]
        for value in attributes.values():
            self.fixed(*(value if isinstance(value, list) else [value]))
        self.graph.node(op, [self._name(x) for x in operands], outputs, **attributes)
        return [Term(self, name) for name in outputs]

    def _name(self, x: Any) -> str:
        if isinstance(x, Term):
            return x.name
        if x is None:  # an optional input that is left out
            return ""
        if isinstance(x, tuple):
            return self.graph.sizes(x)
        return self.graph.constant(x if isinstance(x, np.ndarray) else np.array(x, self.dtype))

    def array(self, x: Any, dtype: Any = None) -> Term:
        """Return a constant, by default of the call's dtype."""
        return Term(self, self.graph.constant(np.asarray(x, dtype or self.dtype)))

    # ---- nodes that several rules need
    def fixed(self, *sizes: Any) -> list[int]:
        """Return sizes that can not depend on the batch, or raise ValueError."""
        if any(isinstance(n, BatchSize) for n in sizes):
            raise ValueError(
                f"onnx.save: {called(self.call)} has the batch on an axis whose size must be fixed in a "
                f"file; {FIX_BATCH}"
            )
        return list(sizes)

    def cast(self, x: Term, dtype: Any) -> Term:
        """Return x converted to another dtype."""
        return self.Cast(x, to=np.dtype(dtype))

    def reshape(self, x: Term, shape: Sizes) -> Term:
        """Return x under another shape."""
        sizes = tuple(shape)
        if sum(isinstance(n, BatchSize) for n in sizes) == 1 and 0 not in sizes:
            sizes = tuple(-1 if isinstance(n, BatchSize) else n for n in sizes)
        return self.Reshape(x, sizes, allowzero=int(0 in sizes))

    def transpose(self, x: Term, order: Sequence[int]) -> Term:
        """Return x with its axes permuted."""
        return x if list(order) == sorted(order) else self.Transpose(x, perm=list(order))

    def expand(self, x: Term, shape: Sizes) -> Term:
        """Return x broadcast to a shape."""
        return self.Expand(x, tuple(shape))

    def slice(self, x: Term, axis: int, start: Size, end: Size) -> Term:
        """Return elements start to end - 1 of an axis."""
        return self.Slice(x, (start,), (end,), (axis,))

    def choose(self, condition: Term, a: Any, b: Any, dtype: np.dtype) -> Term:
        """Return a where a condition holds, else b; onnxruntime's Where has no bools."""
        if dtype.kind != "b":
            return self.Where(condition, a, b)
        return self.Or(self.And(condition, a), self.And(self.Not(condition), b))

    def unsupported(self, why: str, instead: str) -> TypeError:
        """Return the error for a call that has no translation."""
        return unsupported(self.call, why, instead)


def called(call: Call) -> str:
    """Return the op of a call, its layer and its line, for a message."""
    layer = f" in layer {' > '.join(call.layer)}" if call.layer else ""
    return f"{call.op.name}{layer} ({call.line})"


def unsupported(call: Call, why: str, instead: str) -> TypeError:
    """Return the error for a call that has no translation: the op, where it was called, what to do."""
    return TypeError(f"onnx.save: {called(call)} {why}, expected {instead}")
