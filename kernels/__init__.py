"""Kernels: arrays in, arrays out. Numba, llvmlite and NumPy only; no tensor and no gradient.

The contract. Operands are C-contiguous, results too, and of the dtypes that the caller gave. A kernel
writes into what it is given (results and scratch) and allocates nothing. Shapes, dtypes and axes are
checked by the caller; what only the data can tell, such as an index out of range, comes back in the
launch's status word. NaN and infinity pass through. A result has the same bits at any number of threads.

Read in this order: `program.py` (what a launch is), `native.py` and `cache.py` (how code is compiled and
kept), `elementwise.py` with `vector.py` and `formulas.py` (formulas), `kernel.py` and `rows.py` (kernels
in Numba), then any kernel: `softmax.py` is a short one.
"""
