"""Edits of products in bfloat16."""

from .edit import Edit

EDITS = [
    Edit(
        "precision-rounds-down",
        "kernels/bfloat16.py",
        "constant(0x7FFF)",
        "constant(0)",
        "emulated operands are truncated",
        "tests/test_precision.py -k nearest_even",
    ),
    Edit(
        "precision-of-gradients-of-the-block",
        "autodiff/ops/linalg.py",
        "batch_matmul(g, b, False, not transpose_b, precision)",
        "batch_matmul(g, b, False, not transpose_b)",
        "gradients that are taken outside of the block are products in float32",
        "tests/test_precision.py -k gradients",
    ),
    Edit(
        "precision-programs-of-another",
        "autodiff/program/cache.py",
        "        if state.precision is not None:\n            key = (state.precision, key)\n",
        "",
        "a step in bfloat16 replays the program of float32",
        "tests/test_precision.py -k 'programs or jitted'",
    ),
    Edit(
        "precision-last-term",
        "kernels/gemm.py",
        "loop.when(odd, lambda: line(b.shl(half, n64(1)), half, False), [])",
        "pass",
        "of an odd number of terms the last one is lost",
        "tests/test_precision.py -k rounded_operands",
    ),
]
