"""ONNX files of every layer and of whole models give the numbers of `model.apply` in onnxruntime."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

import onnx.reference  # noqa: E402

import treepie as tp  # noqa: E402

from .test_layers import LAYERS, example  # noqa: E402

#: Names of `tp.layer` that are no constructors of layers.
OTHERS = {"check", "summary"}

#: Further cases to those of the laws of layers: name -> (layer, shape of an input, or the input itself).
MORE = {
    "embedding_negative": (tp.layer.embedding(5, 4), np.array([[-1, 0], [4, -5]])),
    "linear_of_vectors": (tp.layer.linear(5, 3), (4, 2, 3, 5)),
    "conv2d_dilated": (tp.layer.conv2d(2, 4, 3, (1, 2), (2, 1), groups=2), (2, 2, 7, 8)),
    "conv2d_same": (tp.layer.conv2d(2, 3, (2, 4), 2, padding="same"), (2, 2, 7, 9)),
    "conv_transpose2d_uneven": (
        tp.layer.conv_transpose2d(2, 4, 3, stride=3, padding=0, output_padding=2, groups=2), (2, 2, 4, 3)
    ),
    "max_pool2d_padded": (tp.layer.max_pool2d(3, 2, padding=1), (2, 3, 6, 7)),
    "max_pool2d_ceil": (tp.layer.lambda_(lambda x: tp.fn.max_pool2d(x, 2, 3, ceil_mode=True)), (2, 3, 6, 7)),
    "max_pool1d_causal": (tp.layer.max_pool1d(3, 1, padding="causal"), (2, 3, 6)),
    "avg_pool2d_padded": (
        tp.layer.lambda_(
            lambda x: tp.fn.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False, ceil_mode=True)
        ),
        (2, 3, 6, 6),
    ),
    "multi_head_attention_rope_grouped": (
        tp.layer.multi_head_attention(8, 4, 2, is_causal=True, rope=True), (2, 5, 8)
    ),
    "gru_last": (tp.layer.gru(3, 5, return_sequences=False), (2, 4, 3)),
    "bidirectional_gru": (tp.layer.bidirectional(tp.layer.gru(3, 5)), (2, 4, 3)),
    "permute_batch": (tp.layer.permute((1, 0, 2)), (2, 4, 3)),
    "glu_last": (tp.layer.glu(), (4, 6)),
}  # fmt: skip
CASES = {**LAYERS, **MORE}

#: onnxruntime has no float64 kernels of some ops: ONNX's own evaluator runs those files.
NO_KERNEL = "NOT_IMPLEMENTED"


def evaluate(file, feeds):
    try:
        session = runtime.InferenceSession(str(file))
    except Exception as error:
        if NO_KERNEL not in str(error):
            raise
        return onnx.reference.ReferenceEvaluator(str(file)).run(None, feeds)
    return session.run(None, feeds)


def feeds_of(x):
    return {f"input.{path}".rstrip("."): t.numpy() for path, t in tp.ptree.flatten_with_paths(tp.ptree.map(tp.tensor, x))}


def randomized(vars, seed=5):
    """Other parameters and state than the initial zeros and ones, positive as variances are."""
    generator = np.random.default_rng(seed)

    def other(t):
        return tp.tensor(np.abs(t.numpy() + generator.uniform(0.1, 0.4, t.shape)), dtype=t.dtype)

    return tp.layer.Vars(tp.ptree.map(other, vars.params), tp.ptree.map(other, vars.state), vars.dtype)


def batches(x, n, dtype):
    """An input like x, its floats of a dtype, with n examples, which differ."""

    def repeated(a):
        a = np.asarray(a)
        rows = np.resize(np.arange(len(a)), n)
        return (a[rows] + 0.1 * np.arange(n).reshape(-1, *[1] * (a.ndim - 1))).astype(dtype) if a.dtype.kind == "f" else a[rows]

    return tp.ptree.map(lambda t: repeated(t.numpy()), tp.ptree.map(tp.tensor, x))


def save(file, model, vars, x):
    """Write a file whose batch is free, for inputs like x."""
    shapes = tp.ptree.map(lambda t: t, tp.ptree.map(tp.tensor, x))
    if isinstance(x, dict):
        shape = {k: (None, *t.shape[1:]) for k, t in shapes.items()}
        dtype = {k: t.dtype for k, t in shapes.items()}
    elif isinstance(x, tuple):
        shape = tuple((None, *t.shape[1:]) for t in shapes)
        dtype = tuple(t.dtype for t in shapes)
    else:
        shape, dtype = (None, *shapes.shape[1:]), shapes.dtype
    tp.onnx.save(model, vars, file, shape, dtype)


def check(file, model, vars, x):
    """Compare all outputs of a file with those of the model."""
    y, _ = model.apply(vars, tp.ptree.map(tp.tensor, x) if isinstance(x, tuple | dict) else tp.tensor(x))
    expected = [t.numpy() for t in tp.ptree.leaves(y)]
    for out, e in zip(evaluate(file, feeds_of(x)), expected, strict=True):
        assert (out.dtype, out.shape) == (e.dtype, e.shape)
        np.testing.assert_allclose(out, e, 1e-5, 1e-5 * max(1.0, np.abs(e).max()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_layer(name, dtype, tmp_path):
    layer, x = CASES[name]
    x = example(x, np.random.default_rng(1))
    vars = randomized(layer.init(tp.rng.key(0), np.dtype(dtype)))
    file = tmp_path / "layer.onnx"
    save(file, layer, vars, batches(x, 2, dtype))
    for n in (1, 5):
        check(file, layer, vars, batches(x, n, dtype))
