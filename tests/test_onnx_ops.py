"""Translations of ops to ONNX: every row of the op table has one, or is refused with a reason."""

from fnmatch import fnmatch

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff.op_inputs import operands, tensors
from treepie.autodiff.table import OPS, Composite
from treepie.onnx.convert import RULES
from treepie.onnx.rules import REFUSED, refused

from .onnx_files import compare, evaluate

TRANSLATED = [name for name, row in OPS.items() if name in RULES and not isinstance(row, Composite)]
CASES = [
    pytest.param(name, k, id=f"{name}-{k}")
    for name in TRANSLATED
    for k, case in enumerate(OPS[name].cases)
    if not any(0 in shape for shape in case.shapes) and not case.attributes.get("dropout")
]


def model_of(row, attributes, first=False):
    """A layer that applies an op to a tuple of inputs. first: whether it returns the first result alone."""

    def apply(xs):
        results = row(*xs, **attributes)
        return results[0] if first else results

    return tp.layer.lambda_(apply)


def outputs(result):
    return [y.numpy() for y in (result if isinstance(result, tuple) else (result,))]


def saved(tmp_path, model, arrays, file="op.onnx"):
    shapes = tuple(a.shape for a in arrays)
    dtype = tp.float64 if any(a.dtype == tp.float64 for a in arrays) else tp.float32
    vars = model.init(tp.rng.key(0), dtype)
    tp.onnx.save(model, vars, tmp_path / file, shapes, tuple(a.dtype for a in arrays))
    return tmp_path / file


def named(arrays):
    return {f"input.{k}": a for k, a in enumerate(arrays)}


def test_every_op_is_translated_or_refused():
    rows = {name for name, row in OPS.items() if not isinstance(row, Composite)}
    assert set(RULES) <= rows
    assert all(refused(name) for name in rows - set(RULES))  # StopIteration for one that is in neither
    used = {next(p for p in REFUSED if fnmatch(name, p)) for name in rows - set(RULES)}
    assert used == set(REFUSED)


@pytest.mark.parametrize(("name", "number"), CASES)
def test_op_in_onnxruntime(name, number, tmp_path):
    row = OPS[name]
    case = row.cases[number]
    first = name == "attention" or (name, number) == ("max_pool", 3)
    arrays = operands(row, case, np.float32 if "float32" in row.dtypes else row.dtypes[0])
    expected = outputs(row(*tensors(arrays), **case.attributes))[: 1 if first else None]
    file = saved(tmp_path, model_of(row, case.attributes, first), arrays)
    compare(evaluate(file, named(arrays)), expected)


@pytest.mark.parametrize("dtype", ["float64", "int32", "int64", "bool"])
@pytest.mark.parametrize("name", TRANSLATED)
def test_op_of_another_dtype(name, dtype, tmp_path):
    row = OPS[name]
    if (name, dtype) == ("add_at", "bool"):
        return  # bools have no sum of their dtype
    case = next(c for c in row.cases if 0 not in sum(c.shapes, ()) and not c.attributes.get("dropout"))
    arrays = operands(row, case, dtype)
    try:
        expected = outputs(row(*tensors(arrays), **case.attributes))
    except TypeError:
        return  # not a dtype of the op
    first = name == "attention"
    file = saved(tmp_path, model_of(row, case.attributes, first), arrays)
    compare(evaluate(file, named(arrays)), expected[: 1 if first else None])
