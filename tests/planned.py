"""Products in bfloat16 as their plans compute them, in scratch memory that held NaN before."""

import numpy as np

from treepie.kernels import matmul_bfloat16
from treepie.kernels.memory import aligned
from treepie.kernels.program import LaunchTable, Operand, Spec

FLOAT32 = np.dtype("float32")


def product(a, b, transpose_a=False, transpose_b=False):
    """Return a b of matrices, which are stored transposed on request."""
    (m, k), n = a.shape, b.shape[1]
    stored = [a.T if transpose_a else a, b.T if transpose_b else b, np.zeros((m, n))]
    held = [aligned((1, *x.shape), FLOAT32) for x in stored]
    for memory, x in zip(held, stored, strict=True):
        memory[0] = x
    held += [aligned((max(size, 1),), FLOAT32) for size in matmul_bfloat16.scratch(m, k, n, 1, 1)]
    for memory in held[3:]:
        memory[:] = np.nan
    operands = [Operand(i, Spec(x.shape, x.dtype)) for i, x in enumerate(held[:3])]
    table = LaunchTable(matmul_bfloat16.plan(*operands, transpose_a, transpose_b, (3, 4)))
    assert table.run([x.ctypes.data for x in held]) == -1
    return held[2][0]
