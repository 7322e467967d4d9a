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
        "self._data, self.source = self._data.read(), None",
        "self._data = self._data.read()",
        "a transposition that was read keeps the memory of its source",
        "tests/test_transposed.py -k no_longer",
    ),
]
