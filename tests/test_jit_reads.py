"""`tp.jit` of functions that read values, and `check=True`: each message names the line."""

import random
import re
from pathlib import Path

import numpy as np
import pytest

import treepie as tp

from .steps import Box, programs, same

ONES = tp.ones(3)


def at_line_of(function):
    """Return a pattern for this file and the line of a function."""
    return rf"(?s){re.escape(Path(__file__).name)}\D+{function.__code__.co_firstlineno}\b"


READS = {
    "if": lambda t: 2.0 if t.sum() > 0 else 3.0,
    "bool": lambda t: bool(t.sum()),
    "item": lambda t: t.sum().item(),
    "float": lambda t: float(t.sum()),
    "int": lambda t: int(t.sum()),
    "range": lambda t: sum(range(t.astype(tp.int32).sum())),
    "tolist": lambda t: t.tolist()[0],
    "numpy": lambda t: t.numpy()[0].item(),
    "asarray": lambda t: np.asarray(t)[0].item(),
    "function_of_numpy": lambda t: np.sqrt(t)[0].item(),
    "array": lambda t: t.array[0].item(),
    "f_string": lambda t: len(f"{t}"),
    "format": lambda t: float(f"{t.sum():.2f}"),
    "str": lambda t: len(str(t)),
    "repr": lambda t: len(repr(t)),
    "print": lambda t: print(t) or 1.0,
    "dlpack": lambda t: np.from_dlpack(t)[0].item(),
}


@pytest.mark.parametrize("name", READS)
def test_a_read_raises_and_names_the_line(name):
    read = READS[name]
    f = lambda x: x * read(x * 2.0)
    with pytest.raises(ValueError, match=at_line_of(read)) as caught:
        tp.jit(f)(ONES)
    assert "jit" in str(caught.value)
    assert re.search(r"fallback=True|tp\.where", str(caught.value))
    same(f(ONES), f(ONES))  # the failed trace leaves no state behind


@pytest.mark.parametrize("name", READS)
def test_fallback_runs_op_by_op_with_one_message(name, capsys):
    read = READS[name]
    f = lambda x: x * read(x * 2.0)
    jitted = tp.jit(f, fallback=True)
    results = [jitted(ONES * float(k)) for k in range(6)]
    lines = [line for line in capsys.readouterr().err.splitlines() if "op by op" in line]
    assert len(lines) == 1
    assert re.search(at_line_of(read), lines[0])
    same(results, [f(ONES * float(k)) for k in range(6)])


NUMBER_READS = {
    "if": lambda n: 2.0 if n > 3 else 3.0,
    "range": lambda n: sum(range(n)),
    "float": lambda n: float(n),
    "f_string": lambda n: len(f"{n}"),
    "shape": lambda n: tp.ones(n).sum(),
    "in": lambda n: n in (1, 2),
}


@pytest.mark.parametrize("name", NUMBER_READS)
def test_a_read_of_a_number_raises(name, capsys):
    read = NUMBER_READS[name]
    f = lambda x, n: x * read(n)
    with pytest.raises(ValueError, match=at_line_of(read)):
        tp.jit(f)(ONES, 2)
    jitted = tp.jit(f, fallback=True)
    for n in (2, 5, 2, 7):
        same(jitted(ONES, n), f(ONES, n))
    assert capsys.readouterr().err.count("op by op") == 1


def test_shapes_and_dtypes_are_no_reads():
    def f(x):
        assert x.dtype == tp.float32
        assert isinstance(x, tp.Tensor)
        scale = len(x) + x.shape[0] + x.ndim + x.size
        return sum(row * float(scale) for row in x)

    x = tp.ones((2, 3))
    with programs():
        same(tp.jit(f, fallback=True)(x), f(x))


# ---- check=True

CHANGES = {}


def case(make):
    """Register a case: make() -> (function, function on the changing line, change, text of the message)."""
    CHANGES[make.__name__] = make
    return make


@case
def a_number():
    box = Box(scale=2.25)
    g = lambda x: x * box.scale
    return lambda x: g(x) + 1.0, g, lambda: setattr(box, "scale", 5.5), r"2\.25.*5\.5"


@case
def a_number_of_an_array():
    w = np.full(3, 2.25)
    g = lambda x: x * w[0].item()
    return lambda x: g(x) + 1.0, g, lambda: w.fill(5.5), r"2\.25.*5\.5"


@case
def an_array():
    w = np.full(3, 2.25, "f4")
    g = lambda x: x * w
    return lambda x: g(x) + 1.0, g, lambda: w.fill(5.5), ""


@case
def a_tensor():
    box = Box(w=tp.full(3, 2.25))
    g = lambda x: x * box.w
    return lambda x: g(x) + 1.0, g, lambda: setattr(box, "w", tp.full(3, 5.5)), ""


@case
def an_op():
    box = Box(f=tp.tanh)
    g = lambda x: box.f(x)
    return lambda x: g(x) + 1.0, g, lambda: setattr(box, "f", tp.exp), "tanh.*exp|exp.*tanh"


@case
def one_op_more():
    box = Box(n=1)
    g = lambda x: sum((x * 2.0 for _ in range(box.n)), x)
    return lambda x: g(x), g, lambda: setattr(box, "n", 2), ""


@case
def an_axis():
    box = Box(axis=0)
    g = lambda x: x.reshape(1, 3).sum(axis=box.axis, keepdims=True).max()
    return lambda x: g(x) + 1.0, g, lambda: setattr(box, "axis", 1), ""


@case
def chance():
    g = lambda x: x * random.random()
    return lambda x: g(x) + 1.0, g, lambda: None, ""


@pytest.mark.parametrize("calls", [1, 4])
@pytest.mark.parametrize("name", CHANGES)
def test_check_names_the_line_that_changed(name, calls):
    f, place, change, text = CHANGES[name]()
    jitted = tp.jit(f, check=True)
    if name == "chance":
        calls = 1
    for _ in range(calls):
        jitted(ONES)
    change()
    with pytest.raises(ValueError, match=at_line_of(place)) as caught:
        jitted(ONES)
    assert re.search(f"(?s){text}", str(caught.value))


def test_check_detects_a_number_in_the_result_that_changed():
    f = lambda x: (x * 2.0, random.random())
    jitted = tp.jit(f, check=True)
    jitted(ONES)
    with pytest.raises(ValueError, match="result"):
        jitted(ONES)


def test_check_accepts_a_pure_function():
    box = Box(scale=2.0, w=np.ones(3, "f4"))

    def f(x, n):
        return tp.tanh(x * box.scale + box.w) * n, n + 1

    jitted = tp.jit(f, check=True)
    with programs():
        for k in range(5):
            x = ONES * float(k)
            same(jitted(x, k)[0], f(x, k)[0])
            assert jitted(x, k)[1] == k + 1
