"""Edits of sparse embeddings: sums of lookups, touched rows, and updates of them alone."""

from .edit import Edit

EDITS = [
    Edit(
        "sparse-rows-of-zeros-touched",
        "kernels/sparse.py",
        "        if _any(sums[r]):\n",
        "        if rows[r] >= 0:\n",
        "a row whose gradient is zero is touched where a program runs, and not op by op",
        "tests/test_sparse.py -k 'cancel or op_by_op or not_touched'",
    ),
    Edit(
        "sparse-lookups-in-one-sum",
        "kernels/sparse.py",
        "                if lookups:\n",
        "                if lookups > 99:\n",
        "several lookups are summed in another order than their dense gradients",
        "tests/test_sparse.py -k 'bits'",
    ),
    Edit(
        "sparse-norm-by-room",
        "kernels/sparse.py",
        "values, sums, _NORM_ROWS)",
        "values, sums, -(-values.shape[0] // chunks))",
        "the bits of a norm depend on the unused room",
        "tests/test_sparse.py -k whatever_the_room",
    ),
    Edit(
        "sparse-copy-left-out",
        "kernels/sparse.py",
        "    if x.ctypes.data != out.ctypes.data:\n",
        "    if x.ctypes.data == out.ctypes.data:\n",
        "rows that are not touched have no values in a new buffer",
        "tests/test_sparse.py -k 'kept or by_hand'",
    ),
    Edit(
        "sparse-last-row-written",
        "kernels/sparse.py",
        "        if rows[r] >= 0:\n            _copy(out[rows[r]], values[r])",
        "        if rows[r] >= -1:\n            _copy(out[rows[r]], values[r])",
        "unused room writes the table's last row",
        "tests/test_sparse.py tests/test_ops.py -k 'dense_table or write_rows'",
    ),
    Edit(
        "sparse-dense-gradient-kept",
        "api/optim/sparse.py",
        "            trace.entries = [item for item in trace.entries if item is not entry]\n",
        "            pass\n",
        "a step computes the dense gradient of a table, which nothing reads",
        "tests/test_sparse.py -k dense_gradient",
    ),
    Edit(
        "sparse-decay",
        "api/optim/rule.py",
        "self.lazy and not (decayed and self.decay)",
        "self.lazy",
        "weight decay of rows that are not touched is silently left out",
        "tests/test_sparse.py -k refused",
    ),
    Edit(
        "sparse-shared-by-ranks",
        "api/train/state.py",
        "return optimizer.elementwise and not snapshot_of",
        "return optimizer.elementwise or snapshot_of",
        "ranks update parts of the table that cut rows",
        "tests/test_sparse.py -k ranks",
    ),
]
