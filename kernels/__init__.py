"""Kernels: arrays in, arrays out. Numba, llvmlite and NumPy only; no tensor and no gradient.

The contract. Operands and results are C-contiguous, with dtypes chosen by the caller. A kernel writes to its
results and scratch, and allocates nothing. Shapes, dtypes and axes are checked by the caller; errors that
depend on values, such as an index out of range, are reported in the launch's status word. NaN and infinity
propagate. A result has the same bits at any number of threads.

Read in this order: `program.py` (what a launch is), `native.py` and `cache.py` (how code is compiled and
kept), `elementwise.py` with `vector.py` and `formulas.py` (formulas), `kernel.py` and `rows.py` (kernels
in Numba), then any kernel: `softmax.py` is a short one.
"""
