"""From the traced graph of a model to ONNX's: each call of an op is translated by its rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from treepie.autodiff import Tensor
from treepie.autodiff.table import OPS
from treepie.kernels.config import __version__

from ..layer.core import Layer, Vars
from . import arrays as arrays, elementwise as elementwise, layers as layers
from .graph import Emitter, Graph, unsupported
from .rules import RULES, refused
from .size import BatchSize, Sizes
from .trace import Call, Traced, Value, trace

#: The version of ONNX's ops, which has LayerNormalization (since 17) and axes of reductions as inputs (since
#: 18), and the version of the file format of that release. Runtimes since 2023 read both.
OPSET, IR_VERSION = 18, 8

#: Bytes of parameters that a file may have. Protocol Buffers count its size in 31 bits; nodes need the rest.
MOST_BYTES = 2**31 - 2**24


def converted(
    onnx: Any,
    model: Layer,
    vars: Vars,
    inputs: Mapping[str, tuple[Sequence[int | None], np.dtype]],
    build: Callable[[Sequence[Tensor]], Any],
) -> Any:
    """Return a model as an ONNX `ModelProto`; see `save` and `trace`."""
    traced = trace(model, vars, inputs, build)
    translation = _Translation(traced)
    graph = translation.graph
    size = sum(a.nbytes for a in graph.initializers.values())
    if size > MOST_BYTES:
        raise ValueError(
            f"onnx.save: the parameters have {size / 1e9:.1f} GB, expected at most {MOST_BYTES / 1e9:.1f}, "
            "the limit of an ONNX file"
        )
    helper = onnx.helper

    def info(name: str, value: Value) -> Any:
        sizes = [n if isinstance(n, int) else str(n) for n in value.shape]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), sizes)

    def attribute(x: Any) -> Any:
        return helper.np_dtype_to_tensor_dtype(x) if isinstance(x, np.dtype) else x

    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node(
                    *(n.op, n.inputs, n.outputs),
                    name=n.outputs[0],
                    **{k: attribute(v) for k, v in n.attributes.items()},
                )
                for n in graph.nodes
            ],
            model.name or "model",
            [info(name, traced.values[n]) for name, n in traced.inputs.items()],
            [info(name, traced.values[n]) for name, n in traced.outputs.items()],
            [onnx.numpy_helper.from_array(a, name) for name, a in graph.initializers.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="treepie",
        producer_version=__version__,
    )


class _Translation:
    """The graph, and the names of the traced values in it."""

    def __init__(self, traced: Traced) -> None:
        self._traced = traced
        batch = next(
            ((name, 0) for name, n in traced.inputs.items() if traced.values[n].shape[:1] == (BatchSize(1),)),
            None,
        )
        self.graph = Graph([*traced.inputs, *traced.outputs], batch)
        self._names = {n: name for name, n in traced.inputs.items()}
        self._producers = {n: call for call in traced.calls for n in call.outputs}
        used = set(traced.outputs.values())
        calls = []
        for call in reversed(traced.calls):
            if used.intersection(call.outputs):
                calls.append(call)
                used.update(call.inputs)
        for call in reversed(calls):
            self._translate(call, [n in used for n in call.outputs])
        for name, n in traced.outputs.items():
            self.graph.node("Identity", [self._name(n)], [name])
        self.graph.prune(list(traced.outputs))

    def _translate(self, call: Call, used: Sequence[bool]) -> None:
        """Append the nodes of a call."""
        name = call.op.name
        if OPS.get(name) is not call.op:
            raise unsupported(
                call,
                "is a kernel or formula of your own, which no file has",
                "functions written in the library's ops",
            )
        if name not in RULES:
            raise unsupported(call, *refused(name))
        on = Emitter(self.graph, call, self._traced.values, used, self._name, self._producers)
        results = RULES[name](on, *map(on.term, call.inputs), **call.attributes)
        every = results if isinstance(results, tuple) else (results,)
        for n, term, needed in zip(call.outputs, every, used, strict=True):
            if needed:
                self._names[n] = term.name

    def _name(self, number: int) -> str:
        """Return the name of a value; a constant becomes an initializer when it is first used."""
        if number not in self._names:
            value = self._traced.values[number]
            self._names[number] = self._range(value) if value.is_range else self._constant(value)
        return self._names[number]

    def _constant(self, value: Value) -> str:
        assert value.array is not None
        if value.path is not None:
            return self.graph.initializer(value.array, value.path)
        name = self.graph.constant(value.array)
        return name if value.array.shape == value.shape else self._expanded(name, value.shape)

    def _expanded(self, name: str, shape: Sizes) -> str:
        out = self.graph.name("expanded")
        self.graph.node("Expand", [name, self.graph.sizes(shape)], [out])
        return out

    def _range(self, value: Value) -> str:
        """Return the name of 0, 1, ... batch - 1."""
        zero, one = (self.graph.constant(np.array(n, np.int64)) for n in (0, 1))
        size, positions, out = (self.graph.name(hint) for hint in ("batch_size", "range", "range"))
        self.graph.node("Squeeze", [self.graph.sizes(value.shape)], [size])
        self.graph.node("Range", [zero, size, one], [positions])
        self.graph.node("Cast", [positions], [out], to=value.dtype)
        return out
