"""The matrix product's edges: every size around a tile's, between guard bands, in all transpositions."""

import itertools
import os
import subprocess
import sys

import llvmlite.binding as llvm
import numpy as np
import pytest

from treepie.autodiff import OPS, tensor
from treepie.kernels import config, gemm, matmul, threads, tiling
from treepie.kernels.epilogue import Epilogue
from treepie.kernels.program import LaunchTable, Operand, Spec
from treepie.kernels.write_back import COLUMN, MATRIX, ROW

GUARD = 4096  # elements on either side of an array: reading one makes the result NaN


def guarded(array, fill):
    """Return a buffer with the array in its middle, and the address of the array."""
    buffer = np.full(array.size + 2 * GUARD, fill, array.dtype)
    buffer[GUARD : GUARD + array.size] = array.ravel()
    return buffer, buffer.ctypes.data + GUARD * array.itemsize


def check(m, k, n, transpose_a, transpose_b, dtype, batch=(1, 1), after=False):
    """Compare with exact products; `after`: 2 C plus a row, a column and a matrix, and that negated."""
    rng = np.random.default_rng(m * 1000003 + k * 1009 + n)
    a, b = (rng.integers(-4, 5, (s, *z)).astype(dtype) for s, z in zip(batch, ((m, k), (k, n)), strict=True))
    want = a @ b  # exact, since all are small integers
    operands = [np.swapaxes(x, 1, 2).copy() if t else x for x, t in ((a, transpose_a), (b, transpose_b))]
    c = np.full(want.shape, np.nan, dtype)
    sizes = matmul.scratch(m, k, n, *batch, transpose_a, transpose_b, dtype)
    more = [rng.integers(-4, 5, s).astype(dtype) for s in ((n,), (c.shape[0] * m,), c.shape)]
    arrays = [*operands, c, *(np.full(s, np.nan, dtype) for s in sizes), *more, np.full_like(c, np.nan)]
    operands = [Operand(i, Spec(x.shape, x.dtype)) for i, x in enumerate(arrays)]
    epilogue = None
    if after:
        want = 2 * want + more[0] + more[1].reshape(-1, m, 1) + more[2]
        kinds = (ROW, COLUMN, MATRIX)
        epilogue = Epilogue("sums", _sums, tuple(operands[5:8]), kinds, (operands[8],))
    launches = matmul.plan(*operands[:3], transpose_a, transpose_b, (3, 4), epilogue)
    held = [guarded(x, 7.0 if i in (2, 8) else np.nan) for i, x in enumerate(arrays)]
    assert LaunchTable(launches).run([address for _, address in held]) < 0
    case = f"{m} x {k} x {n}, transposed {transpose_a} {transpose_b}, {dtype}"
    for packed, size in zip((held[3][0], held[4][0]), sizes, strict=True):
        assert np.isnan(packed[:GUARD]).all(), f"packed before the scratch: {case}"
        assert np.isnan(packed[GUARD + size :]).all(), f"packed after the scratch: {case}"
    for out, expected in ((held[2][0], want), (held[8][0], -want))[: 2 if after else 1]:
        assert (out[:GUARD] == 7.0).all(), f"written before C: {case}"
        assert (out[GUARD + c.size :] == 7.0).all(), f"written after C: {case}"
        np.testing.assert_array_equal(out[GUARD : GUARD + c.size].reshape(c.shape), expected, err_msg=case)


def _sums(c, row, column, matrix):
    total = c + c + row + column + matrix
    return total, -total


BOTH = [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("transpose_a", "transpose_b"), BOTH)
def test_sizes_around_a_tiles(transpose_a, transpose_b, dtype):
    """Rows and columns one less and one more than tiles have; depths of one, and around a vector's."""
    high, wide = gemm.rows(), gemm.panel(dtype, 1000)
    rows = [1, 2, 3, high - 1, high, high + 1, 2 * high - 1, 5 * high + 1]
    columns = [1, wide // 2 - 1, wide // 2, wide // 2 + 1, wide - 1, wide, wide + 1, 6 * wide + 3]
    for m, n in itertools.product(rows, columns):
        for k in (1, 15, 37):
            check(m, k, n, transpose_a, transpose_b, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("transpose_a", "transpose_b"), BOTH)
def test_depths_around_a_blocks(transpose_a, transpose_b, dtype):
    """Depths around the block's, one of which packs A where B has many panels; few panels, and many."""
    assert any(d * tiling.DEPTH * np.dtype(dtype).itemsize % tiling._WAY == 0 for d in (1, 2))
    depths = {1, 2} | {d * tiling.DEPTH + e for d in (1, 2) for e in (-1, 0, 1)}
    for k, n in itertools.product(sorted(depths), (5, 5 * gemm.panel(dtype, 1000) + 1)):
        check(2 * gemm.rows() + 5, k, n, transpose_a, transpose_b, dtype)


@pytest.mark.parametrize("batch", [(3, 3), (3, 1), (1, 3), (20, 20)])
@pytest.mark.parametrize(("transpose_a", "transpose_b"), BOTH)
def test_batches(transpose_a, transpose_b, batch):
    for m, k, n in ((5, 7, 3), (gemm.rows() + 1, 90, 40), (3, 500, 20)):
        check(m, k, n, transpose_a, transpose_b, "float32", batch, after=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("transpose_a", "transpose_b"), BOTH)
def test_epilogues_see_each_element_once(transpose_a, transpose_b, dtype):
    for m, k, n in itertools.product((1, 5, 3 * gemm.rows() + 5), (3, 1100), (1, 10, 32, 70)):
        check(m, k, n, transpose_a, transpose_b, dtype, after=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("after", [False, True])
def test_a_high_product_of_a_long_transposed_matrix(dtype, after):
    """C is computed transposed, with the same bits; an epilogue is a pass after it."""
    m, k, n = 1000, 600, 37
    assert matmul._turns(m, k, n, 1, True, False)
    assert not matmul._turns(m, k, n, 2, True, False)
    check(m, k, n, True, False, dtype, after=after)
    a, b = (np.random.default_rng(0).standard_normal(s).astype(dtype) for s in ((k, m), (k, n)))
    result = OPS["matmul"](tensor(a), tensor(b), transpose_a=True)
    np.testing.assert_array_equal(result.numpy(), OPS["matmul"](tensor(a.T.copy()), tensor(b)).numpy())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_a_large_transposed_matrix_is_packed(dtype, transpose_b):
    """Where vectors are narrower than those of AVX-512."""
    n = 5 * gemm.panel(dtype, 1000) + 1
    large = config.second_level_cache() // 1000
    for m, k in ((1024, 1), (1024, large), (1001, large)):
        cut = tiling.tiling(m, k, n, 1, True, transpose_b, dtype, 2)
        assert cut.packs_a == (config.isa() != "avx512" and k > 1)
        check(m, k, n, True, transpose_b, dtype)


def test_the_second_level_cache(monkeypatch):
    size = config.second_level_cache.__wrapped__
    assert size() >= 1 << 17
    for told, expected in ((1 << 21, 1 << 21), (0, 1 << 19), (-1, 1 << 19)):
        monkeypatch.setattr(config, "isa", lambda: "avx2")
        monkeypatch.setattr(config.os, "sysconf", lambda name, told=told: told)
        assert size() == expected
    monkeypatch.setattr(config, "isa", lambda: "avx512")
    monkeypatch.delattr(config.os, "sysconf")  # as on Windows
    assert size() == 1 << 20


SHAPES = [(700, 600, 500), (40, 900, 2000), (2000, 64, 40), (7, 30, 9)]


@pytest.mark.parametrize("team", [1, 3, 16, 32, 64])
def test_every_grid_gives_the_same_bits(team, monkeypatch):
    """For more threads than the machine has too, every launch through the parallel driver."""
    monkeypatch.setattr(config, "PARALLEL_GAIN", 0.0)
    import treepie as tp

    rng = np.random.default_rng(0)
    before = threads.get_num_threads()
    for m, k, n in SHAPES:
        a, b = rng.standard_normal((m, k), "f4"), rng.standard_normal((k, n), "f4")
        want = tp.matmul(a, b).numpy()
        threads.set_num_threads(team)
        try:
            assert (tp.matmul(a, b).numpy() == want).all()
        finally:
            threads.set_num_threads(before)


@pytest.mark.parametrize("team", [1, 2, 16, 32, 64])
def test_grids_have_work_for_all_threads(team):
    """At least 2 chunks a thread, none of them more than half a thread's share, where C is large."""
    for m, k, n, batch in (
        (2048, 512, 2048, 1),
        (1024, 1024, 1024, 1),
        (4096, 64, 1024, 1),
        (128, 128, 32, 256),
    ):
        for ta, tb in BOTH:
            cut = tiling.tiling(m, k, n, batch, ta, tb, "float32", team)
            share = batch * m * n / team
            assert batch * cut.chunks_m * cut.chunks_n >= 2 * team
            rows = cut.high * -(-m // (cut.high * cut.chunks_m))
            columns = cut.wide * -(-n // (cut.wide * cut.chunks_n))
            assert min(rows, m) * min(columns, n) <= share / 2


FORCED = """
import sys; sys.path.insert(0, {tests!r})
import itertools
from treepie.autodiff import OPS, tensor
from treepie.kernels import gemm
from test_matmul import check
assert gemm.config.isa() == {isa!r}
for dtype, (ta, tb) in itertools.product(("float32", "float64"), itertools.product((False, True), repeat=2)):
    rows = (1, gemm.rows() - 1, 2 * gemm.rows() + 1)
    for m, k, n in itertools.product(rows, (1, 70, 1100), (1, 7, 33, 70)):
        check(m, k, n, ta, tb, dtype)
"""


@pytest.mark.parametrize(
    ("cpu", "features", "isa"), [("generic", "", "generic"), ("haswell", "+avx2,+fma", "avx2")]
)
def test_other_cpus(cpu, features, isa):
    """Narrower vectors, by forcing them."""
    if llvm.get_process_triple().split("-")[0] != "x86_64":
        pytest.skip("needs an x86-64 processor")
    if isa == "avx2" and not llvm.get_host_cpu_features().get("avx2"):
        pytest.skip("needs AVX2")
    code = FORCED.format(tests=os.path.dirname(__file__), isa=isa)
    env = {**os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_neon_tiles_stay_in_registers(monkeypatch):
    """Compiled for another CPU: fused vectors in the loop, and no accumulator goes to memory."""
    monkeypatch.setattr(config, "isa", lambda: "neon")
    monkeypatch.setattr(config, "vector_bytes", lambda: 16)
    monkeypatch.setattr(config, "has_fma", lambda: True)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    text = gemm._tile("tile", "float32", gemm.rows(), 3, False)
    target = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    machine = target.create_target_machine(cpu="neoverse-n1", features="+neon", opt=3)
    module = llvm.parse_assembly(
        text.replace('triple = "unknown-unknown-unknown"', 'triple = "aarch64-unknown-linux-gnu"')
    )
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    lines = machine.emit_assembly(module).splitlines()
    fused = [k for k, line in enumerate(lines) if "fmla" in line and ".4s" in line]
    assert len(fused) >= gemm.rows() * 3
    loop = lines[fused[0] : fused[gemm.rows() * 3 - 1]]
    assert not any("[sp" in line for line in loop)


def test_the_tile_uses_fused_vectors_and_calls_nothing():
    """What LLVM makes of the micro-kernel on this CPU, and of every other function of the product."""
    from treepie.kernels import native

    texts = [gemm._tile("f", "float32", gemm.rows(), 2, False), gemm._pack_transposed("f", "float32", 32)]
    machine = native._engine()[1]
    for text in texts:
        module = llvm.parse_assembly(text)
        builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
        builder.getModulePassManager().run(module, builder)
        code = machine.emit_assembly(module)
        assert "call" not in code
    if config.isa() == "avx512":
        assert machine.emit_assembly(llvm.parse_assembly(texts[0])).count("vfmadd") >= 24
