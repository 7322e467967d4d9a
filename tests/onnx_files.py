"""Writes and runs ONNX files, for tests, which are skipped without onnx and onnxruntime."""

import math

import numpy as np
import pytest

import treepie as tp

onnx = pytest.importorskip("onnx")
reference = pytest.importorskip("onnx.reference")
runtime = pytest.importorskip("onnxruntime")
conv_transpose = pytest.importorskip("onnx.reference.ops.op_conv_transpose")


class ConvTranspose(conv_transpose.ConvTranspose):
    """The op in ONNX's evaluator, which (1.23) fails for groups: one group after another."""

    op_domain = ""

    def _run(self, x, w, b=None, group=None, **options):
        parts = zip(np.split(x, group, 1), np.split(w, group, 0), strict=True)
        results = [super(ConvTranspose, self)._run(u, v, None, group=1, **options)[0] for u, v in parts]
        return (np.concatenate(results, 1),)


class Erf(reference.op_run.OpRun):
    """The op in float64, which ONNX's evaluator rounds to float32."""

    op_domain = ""

    def _run(self, x):
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


def evaluate(file, feeds):
    """Return the results of onnxruntime, or where it has no kernel for a dtype, of ONNX's own evaluator."""
    try:
        session = runtime.InferenceSession(file)
    except Exception as error:
        if "NOT_IMPLEMENTED" not in str(error) or any(x.dtype == np.float32 for x in feeds.values()):
            raise
        return reference.ReferenceEvaluator(str(file), new_ops=[ConvTranspose, Erf]).run(None, feeds)
    return session.run(None, feeds)


def compare(results, expected):
    """Hold results to 1e-5 of the expected elements or of the largest, in float64 to 1e-9."""
    for y, e in zip(results, expected, strict=True):
        assert (y.dtype, y.shape) == (e.dtype, e.shape)
        size = np.abs(np.where(np.isfinite(e), e, 0).astype(np.float64)).max(initial=1.0)
        bound = 1e-9 if e.dtype == np.float64 else 1e-5
        np.testing.assert_allclose(y, e, bound, bound * size)


def leaves(x):
    """The inputs of a model as tensors by path, "" for one."""
    return dict(tp.ptree.flatten_with_paths(tp.ptree.map(tp.tensor, x)))


def feeds_of(x):
    return {f"input.{path}".rstrip("."): t.numpy() for path, t in leaves(x).items()}


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
        return (
            (a[rows] + 0.1 * np.arange(n).reshape(-1, *[1] * (a.ndim - 1))).astype(dtype)
            if a.dtype.kind == "f"
            else a[rows]
        )

    return tp.ptree.map(lambda t: repeated(t.numpy()), tp.ptree.map(tp.tensor, x))


def save(file, model, vars, x):
    """Write a file whose batch is free, for inputs like x."""
    shape = tp.ptree.map(tp.tensor, x)
    if isinstance(x, dict):
        dtype = {k: t.dtype for k, t in shape.items()}
        shape = {k: (None, *t.shape[1:]) for k, t in shape.items()}
    elif isinstance(x, tuple):
        shape, dtype = tuple((None, *t.shape[1:]) for t in shape), tuple(t.dtype for t in shape)
    else:
        shape, dtype = (None, *shape.shape[1:]), shape.dtype
    tp.onnx.save(model, vars, file, shape, dtype)


def check(file, model, vars, x):
    """Compare all outputs of a file with those of the model."""
    y, _ = model.apply(vars, tp.ptree.map(tp.tensor, x) if isinstance(x, tuple | dict) else tp.tensor(x))
    expected = [t.numpy() for t in tp.ptree.leaves(y)]
    compare(evaluate(file, feeds_of(x)), expected)
