"""Edits of updates that ranks share, and of models that sum over ranks in fit."""

from .edit import Edit

EDITS = [
    Edit(
        "shared-parameters-ungathered",
        "api/train/shared_update.py",
        "for array in buffers.arrays[: layout.trained]:",
        "for array in ():",
        "each rank knows its part of the new parameters alone",
        "tests/test_shared_update.py -k same_bits",
    ),
    Edit(
        "shared-norm-of-a-part",
        "api/train/shared_update.py",
        "(*reports.tolist(), strict=True)\n",
        "(*reports.tolist(), strict=True)\n        norms = norms[:1]\n",
        "clipping is by the norm of the first rank's part",
        "tests/test_shared_update.py -k clipping_is",
    ),
    Edit(
        "shared-norm-unweighted",
        "api/train/shared_update.py",
        "(norms) / (total.weight * math",
        "(norms) / (1.0 * math",
        "the norm is that of the sum of gradients",
        "tests/test_shared_update.py -k clipping_is",
    ),
    Edit(
        "shared-moments-of-one-rank",
        "api/train/state.py",
        "        at: Snapshot = source.now.whole()\n",
        "        at: Snapshot = source.now\n",
        "a state that continues has the moments of one rank's part",
        "tests/test_shared_update.py",
        equivalent="a defence: the moments are collected when the state is used, from memory that the "
        "library's own communicators do not reuse while a state holds a piece of it; another engine may",
    ),
    Edit(
        "shared-state-of-a-live-run",
        "api/train/state.py",
        '            self.__dict__["_source"] = source.now.whole()\n',
        '            self.__dict__["_source"] = source.now\n',
        "the state after fit reads memory that a later run writes",
        "tests/test_shared_update.py -k 'goes_on or same_bits'",
        equivalent="the same defence, for the state that fit returns",
    ),
    Edit(
        "shared-in-place-always",
        "api/train/shared_update.py",
        "in_place = isinstance(buffers, SharedBuffers) and buffers.exclusive()",
        "in_place = isinstance(buffers, SharedBuffers)",
        "parameters that a user keeps change with the next step",
        "tests/test_shared_update.py -k 'keeps or reads_it'",
    ),
    Edit(
        "shared-views-uncounted",
        "api/train/shared_update.py",
        "    return np.ndarray(array.shape, array.dtype, owner)  # type: ignore[arg-type]\n",
        "    return array\n",
        "no update is in place, and each step takes new memory",
        "tests/test_shared_update.py -k in_place",
    ),
    Edit(
        "shared-gradients-unnamed",
        "api/train/shared_update.py",
        "        for array in total.sums.arrays:\n",
        "        for array in ():\n",
        "gradients of other ranks' parts are not named where they are not finite",
        "tests/test_shared_update.py -k not_finite",
    ),
    Edit(
        "shared-clipping-changes-bits",
        "api/train/trainer.py",
        "own = (micro_shards is None or clip_norm is None) and has_parts",
        "own = has_parts",
        "micro-shards with clipping have other bits on ranks",
        "tests/test_shared_update.py -k keep_their_bits",
    ),
    Edit(
        "synchronized-unnoticed",
        "api/train/parts.py",
        "        if not self._synchronizes:\n            return\n",
        "        if True:\n            return\n",
        "a rank without rows waits for the others, which wait for it",
        "tests/test_batch_norm_ranks.py -k 'without_rows or micro_shards'",
    ),
]
