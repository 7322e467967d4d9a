"""Writing a model as an ONNX file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from treepie.autodiff import Tensor
from treepie.autodiff.arguments import described, integer
from treepie.autodiff.tensor import check_dtype

from ..checkpoint import files
from ..layer import Layer, Vars

#: The shape of an input, or those of several; None for the batch.
Shapes = Sequence[int | None] | Sequence[Sequence[int | None]] | Mapping[str, Sequence[int | None]]

Inputs = dict[str, tuple[tuple[int | None, ...], np.dtype]]

_NAME = "onnx.save"


def save(
    model: Layer,
    vars: Vars,
    file: str | os.PathLike[str],
    input_shape: Shapes,
    input_dtype: Any = None,
) -> None:
    """Write a model in evaluation mode as an ONNX file, which onnxruntime and many other programs run.

    vars: the parameters and state, `st.vars` of a training state.
    file: is replaced at once, so that a crash leaves the old file or the new one.
    input_shape: the shape of an input, such as (None, 784), where None is a batch of any size; for a model of
        several inputs a tuple or dict of shapes, whose batches are of one size.
    input_dtype: by default the floats of `vars`; int32 or int64 for indices; a tuple or dict of dtypes for
        several inputs.

    The model is traced: its Python runs on tensors with a shape and a dtype, but no elements, and every op is
    translated, those of your own layers too. Checks of values, such as the range of an index, are not in the
    file. The inputs are named "input" or, of several, "input.0" or "input.NAME", outputs likewise.
    Parameters keep their paths as names. The opset is 18. onnxruntime computes some ops, such as
    convolutions, in float32 alone.

    Raises ImportError without the package onnx (`pip install "treepie[onnx]"`), TypeError for an op that has
    no translation and names the layer, ValueError where Python reads a value, where the model depends on the
    batch size in another way than by shapes, and for more than 2 GB of parameters.

    >>> import tempfile, treepie as tp
    >>> model = tp.layer.sequential([tp.layer.linear(4, 8), tp.layer.relu(), tp.layer.linear(8, 3)])
    >>> vars = model.init(tp.rng.key(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tp.onnx.save(model, vars, folder + "/model.onnx", (None, 4))
    """
    onnx = _package()
    if not isinstance(model, Layer):
        raise TypeError(f"{_NAME}: model is {described(model)}, expected a Layer, such as trainer.model")
    if not isinstance(vars, Vars):
        hint = "st.vars" if hasattr(vars, "vars") else "model.init(tp.rng.key(0))"
        raise TypeError(f"{_NAME}: vars is {described(vars)}, expected the model's Vars, such as {hint}")
    if not isinstance(file, str | os.PathLike):
        raise TypeError(f"{_NAME}: file is {described(file)}, expected a path")
    from .convert import converted  # here, as its rules are not needed before

    inputs, build = _inputs(input_shape, input_dtype, vars.dtype)
    _write(onnx, converted(onnx, model, vars, inputs, build), Path(file))


def _package() -> Any:
    """Return the package `onnx`; ImportError, which says how to install it, where it is missing."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            f"{_NAME} needs the package onnx, which can not be imported ({error}): "
            'pip install "treepie[onnx]"'
        ) from error
    return onnx


def _inputs(shape: Any, dtype: Any, default: np.dtype) -> tuple[Inputs, Callable[[Sequence[Tensor]], Any]]:
    """Return the inputs by name, and a function that builds the model's input from their tensors."""
    inputs: Inputs = {}

    def structure(path: str, shape: Any, dtype: Any) -> Any:
        """Add the inputs below a path; return a tree like the model's input, with their positions."""
        if isinstance(shape, Mapping):
            named = dtype if isinstance(dtype, Mapping) else dict.fromkeys(shape, dtype)
            if not named.keys() <= shape.keys():
                raise ValueError(
                    f"{_NAME}: input_dtype has the entries {', '.join(named)}, expected those of "
                    f"input_shape, {', '.join(shape)}"
                )
            return {k: structure(f"{path}.{k}", s, named.get(k)) for k, s in shape.items()}
        if not isinstance(shape, Sequence) or isinstance(shape, str):
            raise TypeError(
                f"{_NAME}: input_shape is {described(shape)}, expected sizes such as (None, 784), or a tuple "
                "or dict of such shapes"
            )
        if shape and all(isinstance(s, Sequence | Mapping) for s in shape):
            types = list(dtype) if isinstance(dtype, tuple | list) else [dtype] * len(shape)
            if len(types) != len(shape):
                raise ValueError(
                    f"{_NAME}: input_dtype has {len(types)} entries, expected {len(shape)} as input_shape has"
                )
            return tuple(structure(f"{path}.{k}", s, types[k]) for k, s in enumerate(shape))
        inputs[path] = _sizes(shape), default if dtype is None else check_dtype(_NAME, dtype)
        return len(inputs) - 1

    tree = structure("input", shape, dtype)
    if not inputs:
        raise ValueError(f"{_NAME}: input_shape is {shape!r}, expected the shape of at least one input")
    return inputs, lambda tensors: _filled(tree, tensors)


def _filled(tree: Any, tensors: Sequence[Tensor]) -> Any:
    if isinstance(tree, dict):
        return {name: _filled(child, tensors) for name, child in tree.items()}
    return tuple(_filled(child, tensors) for child in tree) if isinstance(tree, tuple) else tensors[tree]


def _sizes(shape: Sequence[Any]) -> tuple[int | None, ...]:
    """Return a shape, with None for the batch at the most on the first axis."""
    if any(n is None for n in shape[1:]):
        raise ValueError(
            f"{_NAME}: input_shape is {tuple(shape)}, expected None for the batch alone, the first axis"
        )
    return tuple(None if n is None else integer(_NAME, "input_shape", n, least=1) for n in shape)


def _write(onnx: Any, proto: Any, file: Path) -> None:
    """Check a model, and replace a file by it."""
    content = proto.SerializeToString()
    onnx.checker.check_model(content, full_check=True)
    with files.temporary_folder(_NAME, file) as folder:
        part = folder / file.name
        part.write_bytes(content)
        files.replace(part, file)
