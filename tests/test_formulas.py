"""Accuracy, special values and machine code of the formulas."""

import ctypes
import math
import re

import llvmlite.binding as llvm
import mpmath
import numpy as np
import pytest
from llvmlite import ir
from mpmath import mp, mpf

from treepie.kernels import config, elementwise, formulas, native, trigonometry
from treepie.kernels.program import LaunchTable, Operand, Spec
from treepie.kernels.vector import ELEMENT, Value


def formula(name):
    """Return a formula by its name."""
    return getattr(formulas if hasattr(formulas, name) else trigonometry, name)


INF, NAN = math.inf, math.nan

#: Largest errors allowed, in ulp of float32 and of float64.
BARS = {
    "exp": (1.1, 1.1),
    "expm1": (2, 2),
    "log": (1, 1.1),
    "log1p": (1.5, 1.5),
    "tanh": (1.5, 1.5),
    "sigmoid": (2, 2),
    "silu": (3, 3),
    "softplus": (2, 2),
    "erf": (1.5, 1.5),
    "gelu": (3.5, 3),
    "gelu_approx": (2.5, 2.5),
    "mish": (2.7, 2.5),
    "sin": (1.7, 2),
    "cos": (1.7, 2),
    "power": (1, 1.5),
    "cos_turns": (1.5, 1.5),
}
UNARY = [name for name in BARS if name not in ("power", "cos_turns")]
BITS = {"float32": 24, "float64": 53}
DTYPES = list(BITS)

SLOPE = 2 * math.sqrt(2 / math.pi)
erfc = np.vectorize(math.erfc, otypes=[float])
SINGLE_ORACLE = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-np.maximum(x, -700))),
    "silu": lambda x: np.maximum(x, -700) / (1 + np.exp(-np.maximum(x, -700))),
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-abs(x))),
    "erf": np.vectorize(math.erf, otypes=[float]),
    "gelu": lambda x: np.maximum(x, -50) * erfc(-x / math.sqrt(2)) / 2,
    "gelu_approx": lambda x: (
        np.maximum(x, -50) / (1 + np.exp(-np.maximum(SLOPE * (x + 0.044715 * x**3), -700)))
    ),
    "mish": lambda x: np.maximum(x, -800) * np.tanh(np.logaddexp(x, 0)),
    "sin": np.sin,
    "cos": np.cos,
}
DOUBLE_ORACLE = {
    "exp": mp.exp,
    "expm1": mp.expm1,
    "log": lambda x: mp.log(x) if x > 0 else NAN if x < 0 else -INF,
    "log1p": lambda x: mp.log1p(x) if x > -1 else NAN if x < -1 else -INF,
    "tanh": mp.tanh,
    "sigmoid": lambda x: 1 / (1 + mp.exp(-x)),
    "silu": lambda x: x / (1 + mp.exp(-x)),
    "softplus": lambda x: max(x, 0) + mp.log1p(mp.exp(-abs(x))),
    "erf": mp.erf,
    "gelu": lambda x: x * mp.erfc(-x / mp.sqrt(2)) / 2,
    "gelu_approx": lambda x: x / (1 + mp.exp(-2 * mp.sqrt(2 / mp.pi) * (x + mpf("0.044715") * x**3))),
    "mish": lambda x: x * mp.tanh(mp.log1p(mp.exp(x))),
    "sin": mp.sin,
    "cos": mp.cos,
}


def run(name, *inputs, dtype=None):
    """Apply a formula to arrays of one shape."""
    inputs = [np.ascontiguousarray(x) for x in inputs]
    arrays = [*inputs, np.empty(inputs[0].shape, dtype or inputs[0].dtype)]
    operands = [Operand(k, Spec(a.shape, a.dtype)) for k, a in enumerate(arrays)]
    launch = elementwise.elementwise(f"test_{name}", formula(name), operands[:-1], operands[-1:])
    assert LaunchTable([launch]).run([a.ctypes.data for a in arrays]) == -1
    return arrays[-1]


def sweep(dtype, count):
    """Return about 10 * count numbers: all exponents, usual ranges, subnormals and boundaries."""
    rng = np.random.default_rng(0)
    word, top = ("u4", 2.0**-126) if dtype == "float32" else ("u8", 2.0**-1022)
    info = np.iinfo(word)
    parts = [rng.integers(info.min, info.max, count, dtype=word, endpoint=True).view(dtype)]
    parts += [rng.uniform(-w, w, count) for w in (1, 3, 10, 30, 110, 800)]
    sign = rng.choice([-1.0, 1.0], count)
    parts.append(sign * np.exp2(rng.uniform(-30, 7, count)))
    parts.append(sign * rng.uniform(0, 1, count) * top)
    parts.append(1 + sign * np.exp2(rng.uniform(-BITS[dtype], -1, count)))
    k = np.arange(-150, 150) if count > 1000 else np.arange(-20, 20)
    for unit in (math.log(2) / 2, math.pi / 4, math.sqrt(0.5), 0.55, 1.0):
        boundary = (k * unit).astype(dtype)
        parts += [boundary, np.nextafter(boundary, INF), np.nextafter(boundary, -INF)]
    parts.append([0.0, -0.0, INF, -INF, NAN, np.finfo(dtype).max, np.finfo(dtype).min])
    with np.errstate(over="ignore", under="ignore"):
        return np.concatenate([np.asarray(p).astype(dtype) for p in parts])


def ulps_single(got, exact):
    """Return the errors of float32 results against float64; an infinity counts as 2**128."""
    with np.errstate(over="ignore"):
        rounded = exact.astype("float32")
    right = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
    size = np.maximum(abs(np.where(np.isfinite(exact), exact, 1)), 2.0**-126)  # frexp(0) is that of 0.5
    ulp = np.ldexp(1.0, np.frexp(size)[1] - 24)
    with np.errstate(invalid="ignore", over="ignore"):
        wide = np.where(np.isinf(got), np.copysign(np.ldexp(1.0, 128), got), got.astype(float))
        error = abs(wide - exact) / ulp
    outside = ~np.isfinite(rounded)
    return np.where(right & outside, 0, np.where(np.isnan(error), INF, error))


def ulps_double(got, exact):
    """Return the error of one float64 result against an mpmath number."""
    if not mpmath.isfinite(exact) or math.isnan(got):
        return 0.0 if got == exact or (got != got and exact != exact) else INF
    limit = mpf(2) ** 1024
    exact = max(min(exact, limit), -limit)
    wide = mpf(got) if math.isfinite(got) else mpmath.sign(got) * limit
    ulp = mpf(2) ** (max(mpmath.frexp(exact)[1] - 53, -1074) if exact else -1074)
    return float(abs(wide - exact) / ulp)


def limited(function, x):
    """Evaluate an mpmath function where its result fits, at the limit or NaN elsewhere."""
    name, x = function, mpf(x)
    if mpmath.isnan(x):
        return NAN
    if name in ("sin", "cos"):
        return DOUBLE_ORACLE[name](x) if mpmath.isfinite(x) else NAN
    if name not in ("log", "log1p") and abs(x) > 2000:
        if name in ("softplus", "gelu", "gelu_approx", "mish", "silu", "exp", "expm1") and x > 0:
            return mpf(INF) if name in ("exp", "expm1") else x
        x = mpmath.sign(x) * 2000
    return DOUBLE_ORACLE[name](x)


def worst(x, got, error):
    """Return the largest error, and where it is."""
    k = int(np.argmax(error))
    return error[k], f"{[float(np.ravel(v)[k]) for v in x]} gives {got[k]!r}, {error[k]:.3f} ulp off"


@pytest.mark.parametrize("name", UNARY)
def test_float32(name):
    x = sweep("float32", 20_000)
    with np.errstate(all="ignore"):
        exact = SINGLE_ORACLE[name](x.astype(float))
    got = run(name, x)
    error, where = worst([x], got, ulps_single(got, np.asarray(exact)))
    assert error <= BARS[name][0], where


@pytest.mark.parametrize("name", UNARY)
def test_float64(name):
    x = sweep("float64", 130)
    got = run(name, x)
    with mp.workprec(200 if name not in ("sin", "cos") else 1300):
        exact = [limited(name, v) for v in x.tolist()]
        errors = [ulps_double(g, e) for g, e in zip(got.tolist(), exact, strict=True)]
    error, where = worst([x], got, np.array(errors))
    assert error <= BARS[name][1], where


@pytest.mark.parametrize("name", ["sin", "cos"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sin_and_cos_of_huge_numbers(name, dtype):
    """All exponents, and the float64 nearest to a multiple of pi/2, 6381956970095103 * 2**797."""
    rng = np.random.default_rng(4)
    top = 128 if dtype == "float32" else 1024
    exponents = np.repeat(np.arange(40, top), 1000 // (top // 128))
    x = np.ldexp(rng.uniform(0.5, 1, exponents.size), exponents + 1 - (exponents == top - 1))
    x = x.astype(dtype)[:: 1 if dtype == "float32" else 40]
    with mp.workprec(1300):
        if dtype == "float32":
            errors = ulps_single(run(name, x), SINGLE_ORACLE[name](x.astype(float)))
        else:
            exact = [DOUBLE_ORACLE[name](mpf(v)) for v in x.tolist()]
            got = run(name, x).tolist()
            errors = np.array([ulps_double(g, e) for g, e in zip(got, exact, strict=True)])
            hard = np.array([math.ldexp(6381956970095103, 797)])
            np.testing.assert_allclose(run("cos", hard), [-4.687165924254624e-19], rtol=1e-6)
    error, where = worst([x], x, errors)
    assert error <= BARS[name][DTYPES.index(dtype)], where


def power_arguments(count):
    """Return (x, y) whose powers fill the range of a dtype, near 1 and far from it."""
    rng = np.random.default_rng(1)
    x = np.concatenate([np.exp(rng.uniform(-80, 80, count)), rng.uniform(0.5, 2, count)])
    y = rng.uniform(-1, 1, 2 * count) / abs(np.log(x))
    sign = np.where(np.arange(2 * count) % 7 == 0, -1, 1)
    return sign * x, np.where(sign < 0, np.rint(y), y)


def test_power_float32():
    x, y = power_arguments(100_000)
    x, y = x.astype("float32"), (y * 105).astype("float32")
    y = np.where(x < 0, np.rint(y), y)
    with np.errstate(all="ignore"):
        exact = x.astype(float) ** y.astype(float)
    got = run("power", x, y)
    error, where = worst([x, y], got, ulps_single(got, exact))
    assert error <= BARS["power"][0], where


def test_power_float64():
    x, y = power_arguments(1000)
    y = np.where(x < 0, np.rint(y * 745), y * 745)
    got = run("power", x, y)
    with mp.workprec(200):
        exact = [mp.power(mpf(a), mpf(b)) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
        errors = [ulps_double(g, e) for g, e in zip(got.tolist(), exact, strict=True)]
    error, where = worst([x, y], got, np.array(errors))
    assert error <= BARS["power"][1], where


@pytest.mark.parametrize("dtype", DTYPES)
def test_power_special_cases_are_those_of_numpy(dtype):
    values = [0.0, 1.0, 2.0, 3.0, 0.5, 2.5, 1e-30, 1e30, 2.0**24 + 1, 2.0**53, INF]
    values = np.array([*values, *(-v for v in values), NAN], dtype)
    x, y = (v.ravel() for v in np.meshgrid(values, values))
    with np.errstate(all="ignore"):
        expected = np.power(x, y)
    special = ~np.isfinite(expected) | (expected == 0) | (abs(x) == 1) | (y == 0)
    same(run("power", x, y)[special], expected[special])


def turns(word, bits):
    """Return w / 2**bits turns as (quadrant, rest in turns), exactly but for the last rounding."""
    quadrant = (word + (1 << (bits - 3))) >> (bits - 2)
    return quadrant % 4, word - (quadrant << (bits - 2))


def test_cos_turns_float32():
    rng = np.random.default_rng(2)
    near = np.arange(-1000, 1000)
    words = np.concatenate([rng.integers(0, 2**32, 200_000), *((near + k * 2**29) % 2**32 for k in range(8))])
    quadrant, rest = turns(words, 32)
    angle = rest * (2 * math.pi / 2**32)
    cosine, sine = np.cos(angle), np.sin(angle)
    exact = np.choose(quadrant, [cosine, -sine, -cosine, sine])
    got = run("cos_turns", words.astype("u4").view("i4"), dtype="float32")
    error, where = worst([words], got, ulps_single(got, exact))
    assert error <= BARS["cos_turns"][0], where


def test_cos_turns_float64():
    rng = np.random.default_rng(3)
    words = [*rng.integers(0, 2**63, 1000).tolist()]
    words += [(k * 2**61 + d) % 2**64 for k in range(8) for d in (*range(-20, 20), 2**40)]
    words += [w + 2**63 for w in words[:1000]]
    got = run("cos_turns", np.array(words, "u8").view("i8"), dtype="float64")
    with mp.workprec(200):
        exact = [mp.cospi(mpf(w) / 2**63) for w in words]
        errors = [ulps_double(g, e) for g, e in zip(got.tolist(), exact, strict=True)]
    error, where = worst([np.array(words, float)], got, np.array(errors))
    assert error <= BARS["cos_turns"][1], where


SPECIAL = {
    "exp": [(-INF, 0.0), (INF, INF), (0.0, 1.0), (-0.0, 1.0), (NAN, NAN), (710.0, INF)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (-INF, -1.0), (INF, INF), (NAN, NAN)],
    "log": [
        (0.0, -INF), (-0.0, -INF), (-1.0, NAN), (-INF, NAN), (INF, INF), (1.0, 0.0), (NAN, NAN),
    ],
    "log1p": [
        (0.0, 0.0), (-0.0, -0.0), (-1.0, -INF), (-1.5, NAN), (-INF, NAN), (INF, INF), (NAN, NAN),
    ],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (NAN, NAN)],
    "sigmoid": [(-INF, 0.0), (INF, 1.0), (0.0, 0.5), (NAN, NAN)],
    "silu": [(-INF, -0.0), (INF, INF), (0.0, 0.0), (-0.0, -0.0), (1e30, 1e30), (NAN, NAN)],
    "softplus": [(-INF, 0.0), (INF, INF), (1000.0, 1000.0), (NAN, NAN)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (NAN, NAN)],
    "gelu": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -0.0), (100.0, 100.0), (NAN, NAN)],
    "gelu_approx": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -0.0), (100.0, 100.0), (NAN, NAN)],
    "mish": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -0.0), (100.0, 100.0), (NAN, NAN)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN), (NAN, NAN)],
    "cos": [(0.0, 1.0), (-0.0, 1.0), (INF, NAN), (-INF, NAN), (NAN, NAN)],
}  # fmt: skip


def same(got, expected):
    """Assert equality, of the signs of zeros too."""
    np.testing.assert_array_equal(got, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got[numbers]), np.signbit(expected[numbers]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", UNARY)
def test_special_values(name, dtype):
    x, expected = np.array(SPECIAL[name], dtype).T
    same(run(name, x), expected)


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize(("word", "dtype"), [("u4", "float32"), ("u8", "float64")])
def test_every_nan_gives_nan(name, word, dtype):
    quiet = np.array([NAN], dtype).view(word)
    payloads = np.concatenate([quiet + k for k in (0, 1, 2, 3, 77, 1023, 2047, 4094)]).view(dtype)
    assert np.isnan(run(name, np.concatenate([payloads, -payloads]))).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_results_of_exp_are_gradual(dtype):
    x = np.linspace(-104, -87, 1000) if dtype == "float32" else np.linspace(-745.2, -708, 1000)
    x = x.astype(dtype)
    got = run("exp", x)
    assert (np.diff(got) >= 0).all()
    assert len(np.unique(got[got < np.finfo(dtype).tiny])) > 500


def _scalar_ir(symbol, name, inputs, result):
    """Return a C function of one formula on numbers instead of vectors."""
    module = ir.Module(symbol)
    kinds = [ELEMENT[inputs]] * (2 if name == "power" else 1)
    function = ir.Function(module, ir.FunctionType(ELEMENT[result], kinds), symbol)
    builder = ir.IRBuilder(function.append_basic_block())
    values = [Value(builder, inputs, 1, a) for a in function.args]
    builder.ret(formula(name)(*values).ir)
    return str(module)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(BARS))
def test_scalars_and_vectors_give_the_same_bits(name, dtype):
    inputs = dtype.replace("float", "int") if name == "cos_turns" else dtype
    symbol = f"test_{name}_{dtype}"
    address = native.load(symbol, lambda: _scalar_ir(symbol, name, inputs, dtype))
    x = sweep(dtype, 20)
    x = [x.view(inputs)] if name != "power" else [abs(x), x[::-1].copy()]
    kinds = [np.ctypeslib.as_ctypes_type(v.dtype) for v in (np.empty(0, dtype), *x)]
    function = ctypes.CFUNCTYPE(*kinds)(address)
    one_by_one = np.array([function(*v) for v in zip(*(a.tolist() for a in x), strict=True)], dtype)
    same(run(name, *x, dtype=dtype), one_by_one)


def _assembly(name, inputs, result):
    """Return (names of declared functions, assembly) of a formula's loop, as `native` makes it."""
    count = 2 if name == "power" else 1
    text = elementwise._build("loop", formula(name), [inputs] * count, [result], [True] * count)
    machine = native._engine()[1]
    module = llvm.parse_assembly(text)
    declared = [f.name for f in module.functions if f.is_declaration]
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    return declared, machine.emit_assembly(module)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(BARS))
def test_code_calls_nothing_and_is_vectorised(name, dtype):
    inputs = dtype.replace("float", "int") if name == "cos_turns" else dtype
    declared, assembly = _assembly(name, inputs, dtype)
    assert all(d.startswith("llvm.") for d in declared)
    features = config.cpu()[1].split(",")
    if "+fma" in features:
        assert not re.findall(r"^\s*(?:callq?|jmp)\s+[a-z_]\S*", assembly, re.MULTILINE)
        assert re.search(r"vfn?m(?:add|sub)\w*p[sd]\s", assembly)
