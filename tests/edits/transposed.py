"""Edits of transposed operands, which products read as they are."""

from .edit import Edit

EDITS = [
    Edit(
        "transposed-operand-is-copied",
        "autodiff/ops/shape.py",
        "    result.source = t\n",
        "",
        "x.T @ y copies x",
        "tests/test_transposed.py -k does_not_compute",
    ),
    Edit(
        "source-outlives-a-read",
        "autodiff/tensor.py",
        "            if self.node is None:  # else",
        "            if False:  # else",
        "a transposition that was read keeps the memory of its source",
        "tests/test_transposed.py -k no_longer",
    ),
    Edit(
        "source-is-forgotten-when-read",
        "autodiff/tensor.py",
        "            if self.node is None:  # else",
        "            if True:  # else",
        "gradients of a transposition that was read are added in another order than by a program",
        "tests/test_transposed.py -k order_of_eager",
    ),
    Edit(
        "transposed-twice",
        "autodiff/ops/shape.py",
        "    if t.source is not None:\n        return t.source\n",
        "",
        "a transposition of a transposition is computed, and its gradients are added in another order",
        "tests/test_transposed.py -k itself",
    ),
]
