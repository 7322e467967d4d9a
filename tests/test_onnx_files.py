"""The file that `tp.onnx.save` writes, and its errors."""

import subprocess
import sys

import numpy as np
import pytest

import treepie as tp
from treepie.checkpoint import files
from treepie.onnx import convert

from .onnx_files import check, onnx
from .test_layers import LAYERS


class Shift:
    """A user's own layer, with a parameter and state."""

    @staticmethod
    def init(rngs, dtype):
        return tp.layer.Vars({"w": tp.full((3,), 2.0, dtype)}, {"w": tp.ones((3,), dtype)}, dtype)

    @staticmethod
    def apply(params, state, x, *, dtype, training, rngs, ctx):
        return x * params["w"] + state["w"], state


# ---- the file


def test_names_and_shapes_in_the_file(tmp_path):
    shift = tp.layer.Layer(Shift.init, Shift.apply, "shift")
    model = tp.layer.sequential([tp.layer.linear(4, 3), shift, tp.layer.linear(3, 2, bias=False)])
    tp.onnx.save(model, model.init(tp.rng.key(0), tp.float64), tmp_path / "m.onnx", (None, 4))
    proto = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(proto, full_check=True)
    names = {t.name for t in proto.graph.initializer}
    assert {"0.weight", "0.bias", "1.w", "state.1.w", "2.weight"} <= names
    (x,), (y,) = proto.graph.input, proto.graph.output
    assert (x.name, y.name) == ("input", "output")
    assert x.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE
    assert x.type.tensor_type.shape.dim[0].dim_param == y.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert (proto.producer_name, proto.opset_import[0].version, proto.ir_version) == ("treepie", 18, 8)
    assert any(node.name.startswith("shift/") for node in proto.graph.node)
    tp.onnx.save(model, model.init(tp.rng.key(0)), tmp_path / "m.onnx", (7, 4))
    fixed = onnx.load(tmp_path / "m.onnx").graph.output[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in fixed] == [7, 2]


def test_parameters_that_are_used_twice_are_stored_once(tmp_path):
    model, _ = LAYERS["model"]
    tp.onnx.save(
        model, model.init(tp.rng.key(0)), tmp_path / "m.onnx", {"left": (None, 5), "right": (None, 5)}
    )
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [t.name for t in graph.initializer].count("shared.0.weight") == 1
    assert [t.name for t in graph.input] == ["input.left", "input.right"]
    assert sorted(t.name for t in graph.output) == ["output.distance", "output.score"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    model = tp.layer.linear(2, 2)
    vars = model.init(tp.rng.key(0))
    tp.onnx.save(model, vars, tmp_path / "m.onnx", (1, 2))
    before = (tmp_path / "m.onnx").read_bytes()

    def broken(source, target):
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(files, "replace", broken)
        with pytest.raises(OSError, match="no space"):
            tp.onnx.save(model, vars, tmp_path / "m.onnx", (None, 2))
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == before


def test_too_many_parameters(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "MOST_BYTES", 100)
    model = tp.layer.linear(20, 20)
    with pytest.raises(ValueError, match=r"onnx.save: the parameters have .* GB, expected at most"):
        tp.onnx.save(model, model.init(tp.rng.key(0)), tmp_path / "m.onnx", (None, 20))
    assert not list(tmp_path.iterdir())


# ---- wrong uses


def branch(x):
    return x if x.sum() > 0 else -x


@tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype))
def doubled(rows, x, out):
    for i in rows:
        out[i] = 2.0 * x[i]


@tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype))
def tanh(rows, x, out):
    """A kernel with the name of an op."""
    for i in rows:
        out[i] = 2.0 * x[i]


WRONG = {
    "reads": (
        branch,
        ValueError,
        r"onnx.save: .*test_onnx_files.py:\d+ reads the elements of a tensor.*tp.where",
    ),
    "draws": (
        lambda x: x + tp.rng.normal(tp.rng.key(0), x.shape),
        TypeError,
        r"random_normal in layer sequential > <lambda> \(.*test_onnx_files.py:\d+\) draws random numbers",
    ),
    "kernel": (
        lambda x: doubled(x[:, 0]),
        TypeError,
        "doubled in layer .* is a kernel or formula of your own",
    ),
    "kernel_like_an_op": (
        lambda x: tanh(x[:, 0]),
        TypeError,
        "tanh in layer .* a kernel or formula of your own",
    ),
    "formula": (
        tp.elementwise(lambda x: x * 3.0, vjp=lambda g, y, x: g * 3.0),
        TypeError,
        "a kernel or formula of your own.*expected functions written in the library's ops",
    ),
    "gradient": (
        lambda x: tp.grad(lambda t: tp.softmax(t).max())(x),
        TypeError,
        "softmax_backward .* computes a gradient",
    ),
    "count": (
        lambda x: x * float(x.shape[0]),
        ValueError,
        "a constant, depend on the batch size; pass a fixed",
    ),
    "square": (
        lambda x: tp.broadcast_to(x[0, 0], (x.shape[0] ** 2,)),
        ValueError,
        "expected a linear function of the batch",
    ),
    "ops": (lambda x: sum(x[k] for k in range(x.shape[0])), ValueError, "other ops for another batch size"),
    "fixed": (
        lambda x: tp.fn.group_norm(x.reshape((1, -1, 3)), 1),
        ValueError,
        "normalize in layer .* has the batch on an axis whose size must be fixed",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_model(name, tmp_path):
    function, error, message = WRONG[name]
    model = tp.layer.sequential([tp.layer.lambda_(function)])
    with pytest.raises(error, match=message):
        tp.onnx.save(model, model.init(tp.rng.key(0)), tmp_path / "m.onnx", (None, 3))
    assert not list(tmp_path.iterdir())


def test_a_fixed_batch_allows_what_depends_on_it(tmp_path):
    model = tp.layer.lambda_(WRONG["ops"][0])
    vars = model.init(tp.rng.key(0))
    tp.onnx.save(model, vars, tmp_path / "m.onnx", (4, 3))
    check(tmp_path / "m.onnx", model, vars, np.arange(12.0, dtype=np.float32).reshape(4, 3))


LINEAR = tp.layer.linear(3, 2)
VARS = LINEAR.init(tp.rng.key(0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("model", VARS, "m.onnx", (None, 3)), TypeError, "model is 'model', expected a Layer"),
        ((LINEAR, VARS.params, "m.onnx", (None, 3)), TypeError, "vars is a dict, expected .* Vars"),
        ((LINEAR, VARS, 3, (None, 3)), TypeError, "file is 3, expected a path"),
        ((LINEAR, VARS, "m.onnx", 3), TypeError, "input_shape is 3, expected sizes such as"),
        (
            (LINEAR, VARS, "m.onnx", (2, None)),
            ValueError,
            r"expected None for the batch alone, the first axis",
        ),
        ((LINEAR, VARS, "m.onnx", (None, 0)), ValueError, "input_shape is 0, expected at least 1"),
        ((LINEAR, VARS, "m.onnx", (None, 2.5)), TypeError, "input_shape is 2.5, expected an int"),
        ((LINEAR, VARS, "m.onnx", {}), ValueError, "expected the shape of at least one input"),
        ((LINEAR, VARS, "m.onnx", (None, 4)), ValueError, "linear: x has 4 features, expected 3"),
        ((LINEAR, VARS, "m.onnx", (None, 3), "float16"), TypeError, "float16"),
        ((LINEAR, VARS, "m.onnx", ((1, 3), (1, 3)), (tp.float32,)), ValueError, "input_dtype has 1 entries"),
        (
            (LINEAR, VARS, "m.onnx", {"a": (1, 3)}, {"b": tp.int32}),
            ValueError,
            "input_dtype has the entries b",
        ),
    ],
)
def test_wrong_arguments(arguments, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        tp.onnx.save(*arguments)
    assert not list(tmp_path.iterdir())


def test_a_training_state_is_no_vars():
    trainer = tp.Trainer(LINEAR, tp.optim.sgd(0.1))
    with pytest.raises(TypeError, match=r"vars is a \w+, expected the model's Vars, such as st.vars"):
        tp.onnx.save(LINEAR, trainer.init(tp.rng.key(0)), "m.onnx", (None, 3))


# ---- without the package


def test_without_onnx(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r'needs the package onnx.*pip install "treepie\[onnx\]"'):
        tp.onnx.save(LINEAR, VARS, tmp_path / "m.onnx", (None, 3))


def test_nothing_is_imported_before_it_is_used():
    code = """if True:
        import sys, treepie as tp
        tp.onnx.save
        print([m for m in sys.modules if m.startswith(("onnx", "treepie.onnx"))])"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "['treepie.onnx.save', 'treepie.onnx']"
