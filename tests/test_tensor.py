"""Tensors: making them, operators, indexing, NumPy both ways, and errors."""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff.ops import methods

MADE = [
    ([[0.0, 1.0], [2.0, 3.0]], "float32"),
    (3, "int32"),
    ([1, 2**40], "int64"),
    (True, "bool"),
    ([1, 2.5], "float32"),
    (np.arange(3.0), "float64"),
    (np.arange(3, dtype="int64"), "int64"),
    (np.arange(3, dtype="uint8"), "int32"),
    (np.arange(3, dtype="float16"), "float32"),
    (np.float64(2.5), "float64"),
    (np.arange(3.0).astype(">f8"), "float64"),
    ([], "float32"),
]


@pytest.mark.parametrize(("data", "dtype"), MADE)
def test_dtypes(data, dtype):
    t = tp.tensor(data)
    assert t.dtype == dtype
    np.testing.assert_array_equal(t.numpy(), np.asarray(data))
    assert tp.tensor(data, dtype=tp.float64).dtype == tp.float64


def test_what_it_is():
    x = tp.tensor([[0.0, 1.0, 2.0]])
    assert (x.shape, x.ndim, x.size, len(x)) == ((1, 3), 2, 3, 1)
    assert x.tolist() == [[0.0, 1.0, 2.0]]
    assert repr(x) == "tensor([[0., 1., 2.]], dtype=float32)"
    assert float(tp.tensor(2.5)) == 2.5
    assert f"{tp.tensor(2.5):.2f}" == "2.50"
    assert [row.tolist() for row in x] == [[0.0, 1.0, 2.0]]


def test_it_is_a_copy_and_read_only():
    a = np.ones(3)
    t = tp.tensor(a)
    a[0] = 5
    assert t.tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="read-only"):
        t.numpy()[0] = 2
    assert np.asarray(t) is not a
    assert np.add(t.numpy(), 1).tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "bool"])
def test_dlpack_is_zero_copy(dtype):
    t = tp.tensor(np.arange(6).reshape(2, 3), dtype=dtype)
    out = np.from_dlpack(t)
    np.testing.assert_array_equal(out, t.numpy())
    assert out.dtype == dtype
    assert out.__array_interface__["data"][0] == t.address
    assert tp.tensor(out).dtype == dtype


X = np.arange(60.0, dtype="f4").reshape(3, 4, 5)
INDICES = [
    0,
    -1,
    (1, 2),
    (1, 2, 3),
    slice(1, None),
    (slice(None), slice(1, 3)),
    (slice(None, None, -1), 0),
    (..., 2),
    (0, ..., slice(None, None, 2)),
    None,
    (slice(None), None, 1),
    slice(3, 1),
    np.array([2, 0, 0]),
    (slice(None), np.array([[1, 2], [3, -1]])),
    (1, slice(None), np.array([4, 0])),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indexing_is_numpys(index):
    np.testing.assert_array_equal(tp.tensor(X)[index].numpy(), X[index])
    g = tp.grad(lambda x: (x[index] * x[index]).sum())(tp.tensor(X))
    want = np.zeros_like(X)
    np.add.at(want, index, 2 * X[index])
    np.testing.assert_array_equal(g.numpy(), want)


OPERATORS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "**": lambda a, b: a**b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(
    "pair",
    ["f4,f4", "f4,f8", "i4,i4", "i4,f4", "i8,i4", "f4,2", "i4,2", "i4,0.5", "2,f8", "bool,f4"],
)
def test_operators_promote_as_numpy_does(name, pair):
    def sample(code):
        if code[0].isdigit():
            return float(code) if "." in code else int(code)
        return np.array([1, 2, 1]).astype(code)

    a, b = (sample(c) for c in pair.split(","))
    f = OPERATORS[name]
    want = f(a, b)
    result = f(*(tp.tensor(v) if isinstance(v, np.ndarray) else v for v in (a, b)))
    if name == "**" and want.dtype.kind == "i":
        want = want.astype("f8")  # powers are floats
    assert result.dtype == want.dtype
    np.testing.assert_allclose(result.numpy(), want, rtol=1e-6)


def test_numpy_operands_on_either_side():
    x, a = tp.tensor([1.0, 2.0]), np.array([10.0, 20.0], "f4")
    assert isinstance(a + x, tp.Tensor)
    assert (a + x).tolist() == (x + a).tolist() == [11.0, 22.0]
    assert (np.float32(3) * x).tolist() == [3.0, 6.0]
    assert (a @ x).item() == 50.0


ERRORS = [
    (lambda: tp.tensor([[1.0], [2.0, 3.0]]), ValueError, "tensor: data is not a rectangular array"),
    (lambda: tp.tensor("text"), TypeError, "tensor: data has dtype <U4, expected numbers or bools"),
    (
        lambda: tp.tensor([1.0], dtype="complex64"),
        TypeError,
        "tensor: dtype is 'complex64', expected one of",
    ),
    (
        lambda: tp.tensor([1.0, 2.0]).item(),
        ValueError,
        r"item: a tensor of shape \(2,\) has 2 elements",
    ),
    (lambda: len(tp.tensor(1.0)), TypeError, r"len: a tensor of shape \(\) has no length"),
    (lambda: tp.tensor([1.0])[1], IndexError, r"index: 1 is outside of axis 0 of shape \(1,\)"),
    (lambda: tp.tensor([1.0])[0, 0], IndexError, r"index: 2 indices for shape \(1,\)"),
    (lambda: tp.tensor([1.0])[tp.tensor([3])], IndexError, "index: an index is 3 on axis 0 of shape"),
    (
        lambda: tp.tensor([1.0])[1.5],
        TypeError,
        "index: indices have dtype float32, expected int32 or",
    ),
    (
        lambda: tp.tensor([1.0, 2.0]) + tp.tensor([1.0, 2.0, 3.0]),
        ValueError,
        r"add: operands have shapes \(2,\) and \(3,\)",
    ),
    (
        lambda: tp.logical_and(tp.tensor([1.0]), True),
        TypeError,
        "logical_and: an operand has dtype float32, expected bool",
    ),
    (
        lambda: tp.tensor([[1.0, 2.0]]) @ tp.tensor([[1.0]]),
        ValueError,
        r"matmul: a has shape \(1, 2\) and b \(1, 1\), expected b of shape \(..., 2, n\)",
    ),
    (
        lambda: tp.tensor([[1.0]]) @ np.ones((1, 1)),
        TypeError,
        "matmul: a is float32, b is float64; expected one float dtype",
    ),
    (
        lambda: tp.tensor([1.0]).sum(axis=1),
        ValueError,
        "sum: axis is 1, expected -1 to 0 for 1 axes",
    ),
    (
        lambda: tp.tensor([1.0]).sum(axis=(0, 0)),
        ValueError,
        r"sum: axis is \(0, 0\), expected each axis once",
    ),
    (lambda: tp.tensor([1.0]).sum(axis=0.5), TypeError, "sum: axis is 0.5, expected an int"),
    (
        lambda: tp.max(tp.zeros((0, 2)), 0),
        ValueError,
        r"max: x has shape \(0, 2\), expected at least one element",
    ),
    (
        lambda: tp.reshape(tp.zeros((4,)), (3, -1)),
        ValueError,
        r"reshape: shape is \(3, -1\), expected sizes for the 4 elements",
    ),
    (lambda: tp.concatenate([]), ValueError, "concatenate: xs is empty"),
    (lambda: tp.zeros((-1,)), ValueError, r"zeros: shape is \(-1,\), expected sizes of 0 or more"),
    (
        lambda: tp.full((2,), 3.5, dtype="int32") + 2**40,
        (ValueError, TypeError),
        "common dtype|does not fit",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS)
def test_errors(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "bool"])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_cumsum_of_every_dtype_is_numpys(dtype, axis):
    a = (np.random.default_rng(0).standard_normal((30, 40)) * 3).astype(dtype)
    result, want = tp.cumsum(a, axis), np.cumsum(a, axis)
    assert result.dtype == want.dtype
    np.testing.assert_allclose(result.numpy(), want, rtol=1e-5, atol=1e-4)


def test_clip():
    x = np.array([-3.0, -1.0, 0.0, 2.0, np.nan], "f4")
    np.testing.assert_array_equal(tp.clip(x, -1, 1).numpy(), np.clip(x, -1, 1))
    np.testing.assert_array_equal(tp.clip(x, low=0.5).numpy(), np.clip(x, 0.5, None))
    np.testing.assert_array_equal(tp.clip(x, high=0.5).numpy(), np.clip(x, None, 0.5))
    assert tp.clip(tp.tensor([1, 5]), 2, 4).tolist() == [2, 4]
    assert tp.grad(lambda t: tp.clip(t, -1, 1).sum())(tp.tensor(x[:4])).tolist() == [0, 1, 1, 0]
    with pytest.raises(ValueError, match="clip: low and high are None"):
        tp.clip(x)


def test_creation():
    assert tp.zeros((2, 3)).tolist() == np.zeros((2, 3)).tolist()
    assert tp.ones(2).tolist() == [1.0, 1.0]
    assert tp.full((2,), 7).dtype == tp.int32
    assert tp.arange(3).tolist() == [0, 1, 2]
    assert tp.arange(1, 2, 0.5).tolist() == [1.0, 1.5]
    assert tp.arange(0).shape == (0,)
    assert tp.linspace(0, 1, 3).tolist() == [0.0, 0.5, 1.0]
    assert tp.eye(2, 3).tolist() == np.eye(2, 3).tolist()
    assert tp.zeros_like(tp.tensor([1])).dtype == tp.int32
    assert tp.full_like(tp.tensor([1.5]), 2).tolist() == [2.0]


REDUCED = ["sum", "mean", "max", "min", "argmax", "argmin", "var"]


@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "bool"])
def test_reductions_of_every_dtype_are_numpys(name, dtype):
    a = (np.random.default_rng(0).standard_normal((3, 40, 2)) * 3).astype(dtype)
    if name in ("max", "min") and dtype == "bool":
        want = getattr(np, name)(a, axis=1)
    else:
        want = getattr(np, name)(a, axis=1)
    result = getattr(tp, name)(a, axis=1)
    assert result.dtype == want.dtype
    np.testing.assert_allclose(result.numpy(), want, rtol=1e-5, atol=1e-6)


def test_trees():
    tree = {"layers": [{"weight": tp.ones((2, 3))}, (tp.zeros(1),)]}
    assert [p for p, _ in tp.ptree.flatten_with_paths(tree)] == ["layers.0.weight", "layers.1.0"]
    leaves, rebuild = tp.ptree.flatten(tree)
    assert tp.ptree.leaves(rebuild([x + 1.0 for x in leaves]))[0].tolist() == [[2.0] * 3] * 2
    assert tp.ptree.count_parameters(tree) == 7
    assert tp.ptree.fold(lambda n, x: n + x.size, 0, tree) == 7
    summed = tp.ptree.map(lambda a, b: a + b, tree, tp.ptree.zeros_like(tree))
    assert isinstance(summed["layers"][1], tuple)
    with pytest.raises(ValueError, match=r"ptree.map: at layers.0 the trees differ: dict of \['weight'\]"):
        tp.ptree.map(lambda a, b: a, tree, {"layers": [{"bias": 1.0}, (1.0,)]})
    with pytest.raises(ValueError, match=r"a key at the root is 'a\.b', expected a non-empty string"):
        tp.ptree.leaves({"a.b": 1.0})
    with pytest.raises(TypeError, match=r"the leaf at a\.0 is a str, expected a tensor"):
        tp.ptree.leaves({"a": ["x"]})


def test_dataclasses_in_trees():
    import dataclasses

    @tp.ptree.register_dataclass
    @dataclasses.dataclass
    class Point:
        x: tp.Tensor
        y: tp.Tensor

    g = tp.grad(lambda p: (p.x * p.y).sum())(Point(tp.tensor([2.0]), tp.tensor([3.0])))
    assert isinstance(g, Point)
    assert (g.x.item(), g.y.item()) == (3.0, 2.0)


METHODS = {
    "flatten": (),
    "squeeze": (1,),
    "swapaxes": (0, -1),
    "repeat": (2, 0),
    "take": ([1, 0], 2),
    "sort": (),
    "argsort": (0,),
    "clip": (-0.5, 0.5),
    "round": (),
    "cumsum": (2,),
    "prod": ((0, 2),),
    "std": (),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_numpys(name):
    x = np.random.default_rng(0).standard_normal((3, 1, 4))
    want = np.sort(x) if name == "sort" else getattr(x, name)(*METHODS[name])
    np.testing.assert_allclose(getattr(tp.tensor(x), name)(*METHODS[name]), want, rtol=1e-12)


def test_a_list_of_tensors_passes_gradients():
    g = tp.grad(lambda x: (tp.tensor([[x[0], 2.0], [3.0, x[1]]]) * [[1.0, 9.0], [9.0, 5.0]]).sum())
    assert g(tp.tensor([1.0, 1.0])).tolist() == [1.0, 5.0]


def test_numpy_can_not_silently_drop_a_gradient():
    x = tp.tensor([1.0, 2.0])
    for convert in (np.exp, np.asarray, np.from_dlpack):
        with pytest.raises(TypeError, match="tensor: a gradient is being taken that depends on it"):
            tp.grad(lambda t, convert=convert: (t * convert(t * 2.0)).sum())(x)
    g = tp.grad(lambda t: (t * np.exp(tp.stop_gradient(t))).sum() + float(t[0]) + t.numpy()[0] * t[1])(x)
    np.testing.assert_allclose(g, np.exp([1.0, 2.0]) + np.array([0.0, 1.0]), rtol=1e-6)
    y, _ = tp.vjp(lambda t: t * 2.0, x)
    assert np.asarray(y).tolist() == [2.0, 4.0]  # the gradient's function is over


def _declared():
    """Return the methods that the class declares for type checkers: name -> its parameters."""
    tree = ast.parse(Path(inspect.getfile(tp.Tensor)).read_text(encoding="utf-8"))
    (cls,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Tensor")
    (block,) = (n for n in cls.body if isinstance(n, ast.If))
    return {f.name: [a.arg for a in f.args.args] for f in block.body}


def test_every_declared_method_is_bound():
    assert _declared().keys() == methods.METHODS.keys()


@pytest.mark.parametrize("name", [n for n in _declared() if not n.startswith("_")])
def test_a_bound_method_takes_what_is_declared(name):
    method = vars(tp.Tensor)[name]
    if isinstance(method, property):
        assert _declared()[name] == ["self"]
        return
    parameters = inspect.signature(method).parameters.values()
    names = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
    assert names[1 : len(_declared()[name])] == _declared()[name][1:]


@pytest.mark.parametrize(
    ("data", "dtype"),
    [(2**63, None), ([2**40], "int32"), (np.array([2**64 - 1], np.uint64), None), (-(2**31) - 1, "int32")],
)
def test_integers_that_do_not_fit_are_refused(data, dtype):
    """NumPy's conversion would wrap them."""
    with pytest.raises(ValueError, match="tensor: data has the integer"):
        tp.tensor(data, dtype=dtype)


def test_integers_that_fit_are_kept():
    assert tp.tensor(2**63 - 1).item() == 2**63 - 1
    assert tp.tensor(np.array([2**31 - 1], np.uint64), dtype=tp.int32).item() == 2**31 - 1


def test_sums_and_products_of_bools_are_logical_and_differences_are_refused():
    """As in NumPy."""
    a, b = np.array([True, True, False]), np.array([True, False, False])
    for x, want in (
        (tp.tensor(a) + b, a + b),
        (tp.tensor(a) * tp.tensor(b), a * b),
        (tp.tensor(a) + True, a + True),
    ):
        assert x.dtype == "bool"
        np.testing.assert_array_equal(x, want)
    assert (tp.tensor(a) + 1).dtype == "int64"
    for difference in (lambda: tp.tensor(a) - tp.tensor(b), lambda: -tp.tensor(a)):
        with pytest.raises(TypeError, match="bools"):
            difference()


def test_errors_of_stack_and_transpose_name_them():
    with pytest.raises(ValueError, match=r"stack: xs have shapes \(2,\) and \(3,\)"):
        tp.stack([tp.zeros(2), tp.zeros(3)])
    with pytest.raises(TypeError, match=r"transpose: axes is 0\.0, expected an int"):
        tp.transpose(tp.zeros((2, 3)), (0.0, 1))
