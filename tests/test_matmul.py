"""The matrix product's edges: every size around a tile's, between guard bands, in all transpositions."""

import itertools

import numpy as np
import pytest

from treepie.kernels import gemm, matmul
from treepie.kernels.program import Operand, Program, Spec

GUARD = 4096  # elements on either side of an array: reading one makes the result NaN


def guarded(array, fill):
    """Return a buffer with the array in its middle, and the address of the array."""
    buffer = np.full(array.size + 2 * GUARD, fill, array.dtype)
    buffer[GUARD : GUARD + array.size] = array.ravel()
    return buffer, buffer.ctypes.data + GUARD * array.itemsize


def check(m, k, n, transpose_a, transpose_b, dtype, batch=(1, 1)):
    rng = np.random.default_rng(m * 1000003 + k * 1009 + n)
    a, b = (rng.integers(-4, 5, (s, *z)).astype(dtype) for s, z in zip(batch, ((m, k), (k, n)), strict=True))
    want = a @ b  # exact, since all are small integers
    given = [np.swapaxes(x, 1, 2).copy() if t else x for x, t in ((a, transpose_a), (b, transpose_b))]
    c = np.full(want.shape, np.nan, dtype)
    kind = np.dtype(dtype)
    sizes = matmul.scratch(m, k, n, *batch, transpose_a, dtype)
    arrays = [*given, c, *(np.full(s, np.nan, dtype) for s in sizes)]
    operands = [Operand(i, Spec(x.shape, kind)) for i, x in enumerate(arrays[:3])]
    launches = matmul.plan(*operands, transpose_a, transpose_b, (3, 4))
    held = [guarded(x, 7.0 if i == 2 else np.nan) for i, x in enumerate(arrays)]
    assert Program(launches).run([address for _, address in held]) < 0
    out = held[2][0]
    case = f"{m} x {k} x {n}, transposed {transpose_a} {transpose_b}, {dtype}"
    assert (out[:GUARD] == 7.0).all(), f"written before C: {case}"
    assert (out[GUARD + c.size :] == 7.0).all(), f"written after C: {case}"
    np.testing.assert_array_equal(out[GUARD : GUARD + c.size].reshape(c.shape), want, err_msg=case)


BOTH = [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("transpose_a", "transpose_b"), BOTH)
def test_sizes_around_a_tiles(transpose_a, transpose_b, dtype):
    """Rows and columns one less and one more than tiles have; a depth that is not a small product's."""
    high, wide = gemm.rows(), gemm.panel(dtype, 1000)
    rows = [1, 2, high - 1, high, high + 1, 2 * high - 1, 5 * high + 1]
    columns = [1, wide // 2 - 1, wide // 2, wide // 2 + 1, wide - 1, wide, wide + 1, 6 * wide + 3]
    for m, n in itertools.product(rows, columns):
        check(m, 1 + matmul.SMALL // (m * n), n, transpose_a, transpose_b, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("transpose_a", "transpose_b"), BOTH)
def test_depths_around_a_blocks(transpose_a, transpose_b, dtype):
    """Depths around the block's and around where A begins to be packed, for few and for many panels."""
    depths = {1, 2, matmul._LONG, matmul._LONG + 1, matmul._FAR // 4, matmul._FAR // 4 + 1}
    depths |= {d * matmul._DEPTH + e for d in (1, 2) for e in (-1, 0, 1)}
    for k, n in itertools.product(sorted(depths), (5, 5 * gemm.panel(dtype, 1000) + 1)):
        check(2 * gemm.rows() + 5, k, n, transpose_a, transpose_b, dtype)


@pytest.mark.parametrize("batch", [(3, 3), (3, 1), (1, 3)])
@pytest.mark.parametrize(("transpose_a", "transpose_b"), BOTH)
def test_batches(transpose_a, transpose_b, batch):
    for m, k, n in ((5, 7, 3), (gemm.rows() + 1, 90, 40), (3, 500, 20)):
        check(m, k, n, transpose_a, transpose_b, "float32", batch)
