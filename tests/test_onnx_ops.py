"""Translations of ops to ONNX: every row of the op table has one, or is refused with a reason."""

import numpy as np
import pytest

pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

import onnx  # noqa: E402
import onnx.reference  # noqa: E402

import treepie as tp  # noqa: E402
from treepie.autodiff.op_inputs import operands, tensors  # noqa: E402
from treepie.autodiff.table import OPS, Composite  # noqa: E402
from treepie.onnx import convert  # noqa: E402
from treepie.onnx.rules import REFUSED, RULES, refused  # noqa: E402

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


def evaluated(file, arrays):
    """The results of onnxruntime, or where it has no kernel for a dtype, of ONNX's own evaluator."""
    try:
        session = runtime.InferenceSession(file)
    except Exception as error:
        if "NOT_IMPLEMENTED" not in str(error):
            raise
        return onnx.reference.ReferenceEvaluator(str(file)).run(None, named(arrays))
    return session.run(None, named(arrays))


def compare(results, expected):
    for y, e in zip(results, expected, strict=True):
        assert (y.dtype, y.shape) == (e.dtype, e.shape)
        size = np.abs(np.where(np.isfinite(e), e, 0).astype(np.float64)).max(initial=1)
        np.testing.assert_allclose(y, e, 1e-5, 1e-5 * size)


def test_every_op_is_translated_or_refused():
    rows = {name for name, row in OPS.items() if not isinstance(row, Composite)}
    assert sorted(n for n in rows if (n in RULES) == (refused(n) is not None)) == []
    assert set(RULES) <= rows
    for pattern in REFUSED:
        assert any(n == pattern or n.startswith(pattern.rstrip("*")) for n in rows)


@pytest.mark.parametrize(("name", "number"), CASES)
def test_op_in_onnxruntime(name, number, tmp_path):
    row = OPS[name]
    case = row.cases[number]
    first = name == "attention" or (name, number) == ("max_pool", 3)
    arrays = operands(row, case, np.float32 if "float32" in row.dtypes else row.dtypes[0])
    expected = outputs(row(*tensors(arrays), **case.attributes))[: 1 if first else None]
    file = saved(tmp_path, model_of(row, case.attributes, first), arrays)
    compare(runtime.InferenceSession(file).run(None, named(arrays)), expected)


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
    compare(evaluated(file, arrays), expected[: 1 if first else None])
