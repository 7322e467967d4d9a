"""Integers and arrays that no tensor can have: errors that name the function, before memory is touched."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import treepie as tp

from .extreme_arguments import NO_INTEGERS
from .extreme_calls import OTHERS, functions
from .test_signatures import FUNCTIONS

ROOT = Path(tp.__file__).parent
HERE = Path(__file__).parent


def outcomes(start):
    """Run the calls from a number on in a process; return (number, text, outcome) of those that began."""
    command = [sys.executable, "-m", "tests.extreme_calls", str(start), str(10**9)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=HERE.parent)
    rows = []
    for line in run.stdout.splitlines():
        number, _, row = line.partition(" ")
        died = ["", f"the process ended with {run.returncode}: {run.stderr[-2000:]}"]
        rows.append((int(number), *(json.loads(row)[:2] if row.strip() else died)))
    assert rows or run.returncode == 0, run.stderr
    return rows


def test_extreme_integers_are_refused_by_name():
    """A crash or a hang ends the process: the call counts as wrong, and another process goes on."""
    rows, start = [], 0
    while more := outcomes(start):
        rows += more
        start = rows[-1][0] + 1
    wrong = [f"{text}: {what}" for _, text, what in rows if what not in ("ok", "refused")]
    assert not wrong, "\n".join(wrong[:20])
    assert len(rows) > 10_000
    assert sum(what == "refused" for *_, what in rows) > 5_000


def test_every_function_with_integers_is_called():
    assert {*FUNCTIONS} | {*OTHERS} == {*functions()} | NO_INTEGERS | {*OTHERS}
    elsewhere = {"checkpoint.every", "einsum", "init.uniform", "init.normal"}
    for name in NO_INTEGERS - elsewhere:
        texts = [str(a) for p, a in FUNCTIONS[name].__annotations__.items() if p != "return"]
        assert not any(re.search(r"\bint\b|float|Sizes|Shape\b|Axis", text) for text in texts), name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tp.zeros((2**40, 2**40)), r"^zeros: the shape \(2\*\*40, 2\*\*40\) has 2\*\*80 elements"),
        (lambda: tp.zeros((0, 2**40, 2**40)), r"^zeros: the shape"),
        (lambda: tp.ones(3).reshape((2**70, 0)), r"^reshape: shape is"),
        (lambda: tp.zeros((2**40, 0)) @ tp.zeros((0, 2**40)), r"matmul: the shape \(2\*\*40, 2\*\*40\)"),
        (lambda: tp.full(3, 2**64), r"^full: fill_value is 2\*\*64, expected"),
        (lambda: tp.arange(2**63), r"^arange: stop is 2\*\*63, expected at most 2\*\*63 - 1"),
        (lambda: tp.arange(0.0, np.inf), r"^arange: the shape"),
        (
            lambda: tp.one_hot(tp.tensor([1]), 2**40),
            r"^one_hot: size is 2\*\*40, expected at most 2\*\*31 - 1",
        ),
        (lambda: tp.tensor([1]) + 2**70, r"^add: 1180591620717411303424 does not fit int32|^add: operands"),
        (lambda: tp.repeat(tp.ones(2), 2**62), r"^repeat: the shape"),
        (lambda: tp.repeat(tp.ones(2), 2**64), r"^repeat: repeats is 2\*\*64, expected at most 2\*\*63 - 1"),
        (lambda: tp.pad(tp.ones(2), 2**62), r"^pad: the shape"),
        (lambda: tp.tile(tp.ones(2), 2**62), r"^tile: the shape"),
        (
            lambda: tp.split(tp.ones(0), 2**40),
            r"^split: .* is 2\*\*40, expected at most 65536",
        ),
        (lambda: tp.Data(-1, lambda e, k: k), r"^Data: length is -1, expected at least 0"),
        (
            lambda: tp.fn.max_pool1d(tp.ones((1, 1, 8)), 3, stride=1, dilation=2**32, padding="same"),
            r"^max_pool1d: an axis of 8 has 2\*\*32 and 2\*\*32 elements of padding",
        ),
        (
            lambda: tp.fn.conv_transpose2d(tp.ones((1, 1, 2, 2)), tp.ones((1, 1, 2, 2)), stride=2**40),
            r"^conv_transpose2d: an axis of 1099511627778",
        ),
        (
            lambda: tp.fn.max_pool2d(tp.zeros((1, 0, 2**16, 2**16)), 2),
            r"^max_pool2d: .* in a channel",
        ),
        (
            lambda: tp.check_grads(tp.sum, (tp.ones(2),), order=11),
            r"order is 11, expected at most 10",
        ),
        (lambda: tp.rng.key(10**5000), r"^rng.key: seed is an integer of 16610 bits"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: tp.zeros((2**20, 2**30)), "zeros"),
        (lambda: tp.eye(2**25), "eye"),
        (lambda: tp.arange(2**45), "arange"),
        (lambda: tp.linspace(0.0, 1.0, 2**45), "linspace"),
        (lambda: tp.broadcast_to(tp.ones(()), (2**50,)), "broadcast_to"),
        (
            lambda: tp.jit(lambda x: tp.broadcast_to(x, (2**50,)) * 2)(tp.ones(())),
            "program, intermediate .*",
        ),
        (lambda: tp.rng.truncated_normal(tp.rng.key(0), (2**50,)), "rng.truncated_normal"),
    ],
)
def test_memory_that_the_machine_does_not_have(call, name):
    with pytest.raises(MemoryError, match=rf"^{name}: no memory for [\d.e+]+ GiB"):
        call()


def test_giant_strides_of_one_window():
    """They are cut to the padded axis: one window either way, without scratch memory for each column."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 3, 6, 6)), rng.normal(size=(4, 3, 3, 3))
    for near in (tp.fn.conv2d, lambda x, w, stride, padding: tp.fn.max_pool2d(x, 3, stride, padding)):
        for padding in ("valid", 1):
            expected = near(x, w, stride=8, padding=padding).numpy()
            np.testing.assert_array_equal(near(x, w, stride=2**62, padding=padding).numpy(), expected)
    tp.check_grads(lambda x, w: tp.fn.conv2d(x, w, stride=2**62), (x, w))


@pytest.mark.parametrize(("stride", "dilation"), [((40, 1), 1), ((35, 50), (1, 2)), ((33, 2), (40, 1))])
def test_many_phases_of_a_transposed_convolution(stride, dilation):
    """Phases without taps are filled with zeros at once; the results are those of a matrix product."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 3, 3, 2)), rng.normal(size=(3, 2, 3, 2))
    out = tp.fn.conv_transpose2d(x, w, stride=stride, dilation=dilation).numpy()
    expected = np.zeros_like(out)
    steps = (dilation, dilation) if isinstance(dilation, int) else dilation
    for i, j, a, b in np.ndindex(3, 2, 3, 2):
        y, z = i * stride[0] + a * steps[0], j * stride[1] + b * steps[1]
        expected[:, :, y, z] += x[:, :, i, j] @ w[:, :, a, b]
    np.testing.assert_allclose(out, expected, atol=1e-12)


# ---- tp.Tensor(data)
@pytest.mark.parametrize(
    "data",
    [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.broadcast_to(np.float32(3), (2, 3)),
        np.arange(12.0)[::2],
        np.arange(6).astype(">f8"),
        np.arange(3, dtype=np.float16),
        [[1, 2], [3, 4]],
        7.5,
    ],
)
def test_the_class_copies_and_checks_as_tensor_does(data):
    made, expected = tp.Tensor(data), tp.tensor(data)
    assert made.dtype is expected.dtype
    np.testing.assert_array_equal((made + 0).numpy(), expected.numpy())
    assert made.array.flags.c_contiguous
    assert not np.shares_memory(made.array, data) if isinstance(data, np.ndarray) else True
    assert isinstance(made, tp.Tensor)


def test_the_class_refuses_what_tensor_refuses():
    with pytest.raises(TypeError, match="tensor: data has dtype"):
        tp.Tensor(np.array(["a"]))
    with pytest.raises(ValueError, match="tensor: data has the integer 18446744073709551615"):
        tp.Tensor(np.array([2**64 - 1], np.uint64))


def test_the_class_passes_gradients_and_traces():
    np.testing.assert_array_equal(tp.grad(lambda x: (tp.Tensor(x) * 2).sum())(tp.ones(3)).numpy(), [2, 2, 2])
    np.testing.assert_array_equal(tp.jit(lambda x: tp.Tensor(x) * 2)(tp.ones(3)).numpy(), [2, 2, 2])


def test_the_library_makes_tensors_without_a_copy():
    """Each of its calls passes a node, or None."""
    for path in [*(ROOT / "api").rglob("*.py"), *(ROOT / "autodiff").rglob("*.py"), *ROOT.rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Tensor":
                assert len(node.args) + len(node.keywords) > 1, f"{path}:{node.lineno}"
