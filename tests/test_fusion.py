"""Fusion: the bits of the separate calls, in fewer launches and less memory."""

import functools

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff import ops
from treepie.autodiff.program import program

RNG = np.random.default_rng(0)


def normal(*shape, dtype="f4"):
    return tp.tensor(RNG.standard_normal(shape).astype(dtype))


def names(f, *inputs):
    """Return the calls of a function's program."""
    jitted = tp.jit(f)
    jitted(*inputs)
    calls = [call for call, _ in jitted.programs[0].calls]
    return [call.op.name for k, call in enumerate(calls) if not k or calls[k - 1] is not call]


def check(f, *inputs):
    """Check the bits against eager calls, on the traced values and on others; return the program."""
    jitted = tp.jit(f)
    for scale in (1.0, -1.5, np.nan):
        operands = [t * scale if t.dtype.kind == "f" else t for t in inputs]
        results, expected = jitted(*operands), f(*operands)
        pairs = zip(*(y if isinstance(y, tuple) else (y,) for y in (results, expected)), strict=True)
        for a, b in pairs:
            np.testing.assert_array_equal(a.numpy(), b.numpy())
    return jitted.programs[0]


X, W, B = (5, 33), (33, 37), (37,)


@pytest.mark.parametrize(
    ("f", "shapes", "left"),
    [
        (lambda x, w, b: ops.relu(ops.linear(x, w, b)), (X, W, B), ["linear + relu"]),
        (lambda x, w, b: ops.gelu(ops.linear(x, w, b, "tanh")), (X, W, B), ["linear + gelu"]),
        (lambda x, w, b, r: r + ops.linear(x, w, b), (X, W, B, (5, 37)), ["linear + add"]),
        (lambda x, w, row: (x @ w) * row, (X, W, (37,)), ["matmul + mul"]),
        (lambda x, w, column: (x @ w) - column, (X, W, (5, 1)), ["matmul + sub"]),
        (lambda x, w, scalar: (x @ w) / scalar, (X, W, ()), ["matmul + div"]),
        (lambda x, w, c: ops.where(c > 0, x @ w, 0.0), (X, W, (5, 37)), ["greater", "matmul + where"]),
        # Several links; an operand that is read twice; a result with other users.
        (lambda x, w, b: ops.square((x @ w + b) * b) - b, (X, W, B), ["matmul + add + mul + square + sub"]),
        (lambda x, w: (lambda y: (y, ops.gelu(y)))(x @ w), (X, W), ["matmul + gelu"]),
        (lambda x, w: (lambda y: ops.tanh(y) + ops.relu(y))(x @ w), (X, W), ["matmul + tanh + relu + add"]),
        (lambda x, w: (lambda y: (ops.tanh(y), y.sum()))(x @ w), (X, W), ["matmul + tanh", "sum"]),
        # The later of two products takes their sum, as either operand.
        (lambda x, w: x @ w + (x * 2.0) @ w, (X, W), ["matmul", "mul", "matmul + add"]),
        (lambda x, w: (lambda a: (x * 2.0) @ w + a)(x @ w), (X, W), ["matmul", "mul", "matmul + add"]),
        # A column is planned as a row.
        (
            lambda x, w, b, r: ops.relu(x @ w + b) * r,
            (X, (33, 1), (1,), (5, 1)),
            ["matmul + add + relu + mul"],
        ),
        # Leading axes, and a result that is reshaped.
        (lambda x, w, b: ops.relu(x @ w + b), ((2, 5, 7), (7, 9), (9,)), ["matmul + add + relu"]),
        (lambda x, w, b: ops.relu(x @ w + b), ((2, 5, 7), (2, 7, 9), (9,)), ["matmul + add + relu"]),
        (lambda x, w, b: (x @ w) * b, ((2, 5, 7), (2, 7, 1), (2, 5, 1)), ["matmul + mul"]),
        (lambda x, w, b: ops.reshape(x @ w, (3, 2, 4)) * b, ((6, 5), (5, 4), (4,)), ["matmul + mul"]),
        (lambda x, w, b: ops.reshape(x @ w, (6, 2, 2)) * b, ((6, 5), (5, 4), (2, 2)), ["matmul + mul"]),
        # Elementwise calls alone.
        (lambda x, y: ops.tanh(x * y) + 1.0, ((4, 9), (9,)), ["mul + tanh + add"]),
        (lambda x, y: ops.square(ops.reshape(x - y, (6, 6))), ((4, 9), (4, 1)), ["sub + square"]),
        (lambda x, y: ops.where(x > y, x, y).sum(), ((4, 9), (4, 9)), ["greater + where", "sum"]),
        # Common subexpressions, and constant folding.
        (lambda x, w: (ops.exp(x) @ w) * (ops.exp(x) @ w), (X, W), ["exp", "matmul + mul"]),
        (lambda x, w: x @ w * (tp.tensor(2.0) + 1), (X, W), ["matmul + mul"]),
        # Not fused: where the other operand depends on the product's result, the result has another shape,
        (lambda x, w: (lambda y: y / y.sum())(x @ w), (X, W), ["matmul", "sum", "div"]),
        (
            lambda x, w: (lambda y: ops.exp(y - y.max(-1, keepdims=True)))(x @ w),
            (X, W),
            ["matmul", "max", "sub + exp"],
        ),
        (lambda x, w: (lambda y: y * (y @ w))(x @ w), ((4, 4), (4, 4)), ["matmul", "matmul + mul"]),
        (lambda x, w, b: x @ w + b, (X, W, (3, 5, 37)), ["matmul", "add"]),
        # another dtype, or no elements; where an operand is no matrix, row or column,
        (lambda x, w: x @ w > 0, (X, W), ["matmul", "greater"]),
        (lambda x, w: ops.relu(x @ w).sum(), ((0, 33), W), ["sum"]),
        (lambda x, w, b: ops.relu(ops.linear(x, w, b)).sum(), (X, (33, 0), (0,)), ["sum"]),
        (lambda x, w, b: ops.reshape(x @ w, (2, 3, 4)) * b, ((6, 5), (5, 4), (3, 4)), ["matmul", "mul"]),
        # but a part of the result, or the second result of a call.
        (lambda x, w: ops.tanh((x @ w)[1:]), (X, W), ["matmul", "strided_slice", "tanh"]),
        (lambda x, w, b: ops.relu(ops.linear(x, w, b, "gelu")[1]), (X, W, B), ["linear", "relu"]),
    ],
)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_fused_calls(f, shapes, left, dtype):
    inputs = [normal(*shape, dtype=dtype) for shape in shapes]
    assert names(f, *inputs) == left
    check(f, *inputs)


def test_groups_with_a_cycle_are_not_fused():
    """The product takes the sum, so it waits for exp; its softmax does too, and exp can not take v."""

    def f(x, w):
        t = x @ w
        s, o = ops.softmax(t), ops.exp(x)
        return t + o, o * s

    assert names(f, normal(4, 4), normal(4, 4)) == ["exp", "matmul + add", "softmax", "mul"]
    check(f, normal(4, 4), normal(4, 4))


def test_equal_results_are_each_stored():
    f = lambda x: (ops.exp(x), ops.exp(x), x * 2)
    check(f, normal(5, 33))


def test_an_index_of_a_result_that_nobody_uses_is_checked():
    f = tp.jit(lambda x, i: (ops.take(x, i, 0), x * 2)[1])
    x = normal(4, 3)
    np.testing.assert_array_equal(f(x, tp.tensor([3])), x * 2)
    with pytest.raises(IndexError, match="an index is 4"):
        f(x, tp.tensor([4]))


def test_results_and_operands_that_are_constant():
    constant = tp.tensor(np.linspace(0.0, 1.0, 33, dtype="f4"))
    check(lambda x: (x * 2, ops.exp(constant)), normal(5, 33))
    check(lambda x: (ops.exp(constant) + x, ops.exp(constant * x)), normal(5, 33))


def test_a_constant_index_outside_of_its_axis_raises():
    f = tp.jit(lambda x: x + ops.take(tp.ones((3, 2)), tp.tensor([0, 5]), 0).sum())
    with pytest.raises(IndexError, match="an index is 5"):
        f(normal(4))


def test_calls_that_differ_in_attributes_or_slices_are_not_common():
    x = normal(6, 6)
    check(lambda x: (ops.sum(x, 0) * ops.sum(x, 1), ops.softmax(x, 0) - ops.softmax(x, 1)), x)
    check(lambda x: ops.softmax(ops.exp(x)[:4]) + ops.softmax(ops.exp(x)[2:]), x)
    check(lambda x: ops.softmax(ops.exp(x)).sum(0) + ops.softmax(ops.exp(x)).sum(1), x)


def test_a_part_of_a_result_is_not_all_of_it():
    x, w = normal(6, 6), normal(6, 6)
    check(lambda x: ops.exp(x)[:1] + x, x)
    check(lambda x: ops.exp(x)[2:3] * ops.exp(x), x)
    check(lambda x, w: (x @ w)[:1] + x, x, w)
    check(lambda x: ops.softmax(ops.exp(x)[1:][2:]), x)


def test_views_of_results():
    """Which begin in the middle of a buffer."""
    x = normal(33)
    view = lambda y, start, *shape: ops.flat_slice(y, start, shape)
    check(lambda x: ops.softmax(view(ops.exp(x), 0, 4)) + ops.softmax(view(ops.exp(x), 7, 4)), x)
    check(lambda x: ops.softmax(view(view(ops.exp(x), 5, 4, 6), 3, 2, 4)), x)
    check(lambda x: view(ops.exp(x), 0, 1) + x, x)
    check(lambda x: view(x, 3, 2, 5) * 2 + view(view(x, 10, 20), 10, 2, 5), x)


def test_joins_write_their_parts_in_place():
    a, b = normal(4, 6), normal(3, 6)
    joined = lambda a, b: ops.concatenate([ops.exp(a), ops.softmax(b)])
    check(lambda a, b: joined(a, b), a, b)
    check(lambda a, b: ops.softmax(joined(a, b)), a, b)
    check(lambda a, b: (joined(a, b), ops.exp(a)), a, b)
    check(lambda a, b: (lambda e: (ops.concatenate([e, e]), ops.concatenate([b, e])))(ops.exp(a)), a, b)
    check(lambda a, b: ops.concatenate([joined(a, b), ops.exp(b)]), a, b)
    check(lambda a, b: (lambda e: (ops.concatenate([e, b]), e))(ops.exp(a)), a, b)
    check(lambda a: ops.concatenate([a[2:], a[:2]]), a)
    check(lambda a: ops.concatenate([a[:2], a[2:]]), a)
    check(lambda a: ops.concatenate([ops.exp(a)[2:], ops.exp(a)[:2]]) * 2, a)


def test_a_group_has_at_most_8_operands():
    xs = [normal(5, 33) for _ in range(12)]
    f = lambda *xs: functools.reduce(ops.add, xs)
    check(f, *xs)
    jitted = tp.jit(f)
    jitted(*xs)
    assert [len(call.inputs) for call, _ in jitted.programs[0].calls] == [8, 5]


def test_large_constants_are_not_folded():
    f = lambda n: lambda x: (x + ops.exp(tp.zeros((n,)))).sum()
    assert names(f(1000), normal(1000)) == ["add", "sum"]
    assert names(f(1 << 19), normal(1 << 19)) == ["exp + add", "sum"]
    check(f(1000), normal(1000))
    check(f(1 << 19), normal(1 << 19))


def test_large_products_fuse_only_where_it_is_faster():
    x, w = normal(600, 8), normal(8, 500)
    assert names(lambda x, w: ops.relu(x @ w), x, w) == ["matmul + relu"]
    assert names(lambda x, w: ops.gelu(x @ w), x, w) == ["matmul", "gelu"]
    assert names(lambda x, w: (lambda y: (y, ops.relu(y)))(x @ w), x, w) == ["matmul", "relu"]


def test_a_product_of_depth_0_runs_its_epilogue():
    x, w, b, c = normal(4, 0), normal(0, 3), normal(3), normal(4, 1)
    f = lambda x, w, b, c: ops.relu(ops.linear(x, w, b, "gelu")[0]) * c
    assert names(f, x, w, b, c) == ["linear + relu + mul"]
    check(f, x, w, b, c)

    def g(x, w, b):
        y = x @ w
        return y, ops.relu(y + b)

    assert names(g, x, w, b) == ["matmul + add + relu"]
    check(g, x, w, b)


def random_function(seed):
    """A random function of matrices, rows, columns and scalars: products and elementwise ops."""
    unary = [ops.relu, ops.tanh, ops.neg, ops.square, ops.gelu, lambda x: x * 0.5, ops.sigmoid]
    binary = [ops.add, ops.sub, ops.mul, ops.maximum, lambda a, b: ops.where(a > b, a, -b)]

    def f(x, w, row, column, scalar):
        rng = np.random.default_rng(seed)
        values = [x @ w, ops.linear(x, w, row)]
        for _ in range(12):
            kind = rng.integers(8)
            a, b = (values[k] for k in rng.integers(max(0, len(values) - 4), len(values), 2))
            if kind < 3:
                values.append(unary[rng.integers(len(unary))](a))
            elif kind < 6:
                other = [b, b, row, column, scalar][rng.integers(5)]
                pair = (a, other) if rng.integers(2) else (other, a)
                values.append(binary[rng.integers(len(binary))](*pair))
            elif kind == 6:
                values.append(ops.tanh(a) @ ops.batch_matmul(w, w, True, False))
            else:
                values.append(a - a.mean(rng.integers(2), keepdims=True))
        return tuple(values[k] for k in rng.choice(len(values), 3, replace=False))

    return f


@pytest.mark.parametrize("shape", [(13, 9, 35), (7, 5, 1), (1, 6, 20)], ids=str)
@pytest.mark.parametrize("seed", range(12))
def test_random_functions_keep_their_bits(seed, shape, monkeypatch):
    m, k, n = shape
    inputs = normal(m, k), normal(k, n), normal(n), normal(m, 1), normal()
    optimized = check(random_function(seed), *inputs)
    monkeypatch.setattr(program, "fuse", lambda graph, calls, live_out: list(calls))
    plain = check(random_function(seed), *inputs)
    assert len(optimized.launches) < len(plain.launches)
    assert optimized.unshared <= plain.unshared


def programs_of(model, loss, x, y, monkeypatch):
    programs = []
    init = program.Program.__init__

    def recording(self, *args, **options):
        init(self, *args, **options)
        programs.append(self)

    monkeypatch.setattr(program.Program, "__init__", recording)
    trainer = tp.Trainer(model, tp.optim.sgd(0.1))
    trainer.fit(trainer.init(tp.rng.key(0)), tp.Data.repeat(4, (x, y)), loss=loss)
    return programs


def test_relu_and_its_gradient_are_fused_in_a_step(monkeypatch):
    """Three hidden layers save 6 passes over memory, and no sum before a relu is stored."""
    L = tp.layer
    model = L.sequential([*[L.linear(40, 40), L.relu()] * 3, L.linear(40, 10)])
    x, y = normal(64, 40), tp.tensor(RNG.integers(0, 10, 64).astype("i4"))
    (optimized,) = programs_of(model, tp.loss.cross_entropy_sparse, x, y, monkeypatch)
    with monkeypatch.context() as plain:
        plain.setattr(program, "fuse", lambda graph, calls, live_out: list(calls))
        (before,) = programs_of(model, tp.loss.cross_entropy_sparse, x, y, monkeypatch)
    assert len(before.launches) - len(optimized.launches) == 6 + 2  # and two folded: 1 / 64, for each example
    assert before.unshared - optimized.unshared >= 6 * 64 * 40 * 4


def test_equal_layers_have_one_compiled_function():
    from treepie.kernels import native

    def f(x, w, b):
        for _ in range(6):
            x = ops.tanh(ops.linear(x, w, b)) * 0.25 + x
        return x

    check(f, normal(8, 24), normal(24, 24), normal(24))
    compiled = [name for name in native._addresses if "tanh_mul_add" in name]
    assert len(compiled) == 1
