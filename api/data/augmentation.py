"""Augmentation by example: what an augmentation is, the random numbers of an example, and pipelines of them.

A batch is a list of examples by their indices in the arrays of `Data.prepare`. The numbers of an example
depend on the key, the pass and this index alone, so that batch size, ranks, threads and the order of the
pass change nothing, and a run that resumes in the middle of a pass continues with the same examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff import Tensor, rng
from treepie.autodiff.arguments import as_tensor, described
from treepie.autodiff.ops.random import check_key, random_bits_at
from treepie.autodiff.tensor import TensorLike

from ..pickling import Constructed
from .rows import Batches, Rows, Shards, length_of

#: The parts of a batch: images, and what else there is of each example, such as targets and weights.
Parts = tuple[Tensor, ...]


class Examples:
    """Examples that an augmentation is applied to.

    parts: their images, targets ...  index: of each in the data set.  count: of the data set.
    others: (indices) -> parts of these examples, as they are before this augmentation.
    """

    def __init__(
        self,
        parts: Parts,
        index: NDArray[np.int64],
        count: int,
        others: Callable[[NDArray[np.int64]], Parts],
        draws: tuple[Tensor, int] | None,
    ) -> None:
        self.parts, self.index, self.count, self.others = parts, index, count, others
        self._draws = draws

    def uniform(self, number: int) -> NDArray[np.float64]:
        """Return random number `number` of each example, in [0, 1), a multiple of 2**-53."""
        assert self._draws is not None
        key, numbers = self._draws
        bits = random_bits_at(key, Tensor(self.index * numbers + number, None)).numpy()
        return (bits.view(np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integers(self, number: int, low: int, high: int) -> NDArray[np.int64]:
        """Return random integers of `low` to `high`, inclusive, by a random number of each example."""
        return low + (self.uniform(number) * (high - low + 1)).astype(np.int64)


class Augmentation(Constructed):
    """A change of each example of a batch, as `tp.augment` has them; `Data.augment` applies some in turn.

    apply: (examples) -> their new parts.  numbers: how many random numbers an example draws.

    Called with a batch, images or a tuple of images and targets, and a key, it augments that alone, as an
    array of so many examples: for a look at some, and for loops without a pipeline.

    >>> import treepie as tp
    >>> flip = tp.augment.flip(horizontal=1.0)
    >>> flip(tp.tensor([[[1, 2], [3, 4]]]), tp.rng.key(0)).tolist()
    [[[2, 1], [4, 3]]]
    """

    def __init__(self, name: str, apply: Callable[[Examples], Parts], numbers: int) -> None:
        self.name, self.apply, self.numbers = name, apply, numbers

    def __call__(self, batch: TensorLike, key: Tensor | None = None) -> Any:
        """Return a batch augmented, as a tuple if it is one.

        batch: images, or a tuple of images, targets and more.  key: required where numbers are drawn.

        Raises ValueError for parts of different lengths, TypeError without a key.
        """
        single = not isinstance(batch, tuple)
        parts = tuple([as_tensor(x) for x in (batch if isinstance(batch, tuple) else (batch,))])
        count = length_of(self.name, parts)
        check_draws(self.name, [self], key)
        everything = np.arange(count)
        draws = None if key is None else (key, self.numbers)
        results = self.apply(Examples(parts, everything, count, lambda rows: take(parts, rows), draws))
        return results[0] if single else results


def take(parts: Parts, rows: NDArray[np.int64]) -> Parts:
    """Return some rows of tensors."""
    return tuple(Tensor(np.asarray(x.array[rows]), None) for x in parts)


def check_draws(function: str, augmentations: Sequence[Any], key: Any) -> None:
    """Raise TypeError for what is no augmentation, and for a missing or an invalid key."""
    for a in augmentations:
        if not isinstance(a, Augmentation):
            hint = f" (call it: tp.augment.{a.__name__}())" if callable(a) and hasattr(a, "__name__") else ""
            raise TypeError(
                f"{function}: an augmentation is {described(a)}, expected some of tp.augment, such as "
                f"tp.augment.flip(){hint}"
            )
    if key is not None:
        check_key(function, key)
    elif any(a.numbers for a in augmentations):
        raise TypeError(f"{function}: key is missing, expected one, such as key=tp.rng.key(0)")


class AugmentedBatches:
    """Batches of `Data.prepare` whose examples are augmented; see `Batches`."""

    def __init__(
        self,
        batches: Batches | AugmentedBatches | None,
        augmentations: tuple[Augmentation, ...],
        key: Tensor | None,
    ) -> None:
        if batches is None:
            raise ValueError(
                "Data.augment: the elements are not batches of Data.prepare, expected "
                "Data.prepare(...).augment(...), before map, batch, shuffle and prefetch"
            )
        check_draws("Data.augment", augmentations, key)
        self._batches, self._augmentations, self._key = batches, augmentations, key
        self.length: int = batches.length
        self.size: int = batches.size
        self.single: bool = batches.single
        # Stages of several calls have different numbers, since the calls may have the same key.
        self._before: int = batches.stages if isinstance(batches, AugmentedBatches) else 0
        self.stages: int = self._before + len(augmentations)
        self.read(0, slice(0, min(self.length, 1)))  # shapes and dtypes that do not fit are an error here

    def rows(self, e: int, k: int, shards: Shards | None = None) -> Rows:
        """Return the indices of the examples of batch k of pass e, or of this rank's part of it."""
        return self._batches.rows(e, k, shards)

    def read(self, e: int, rows: Rows) -> Parts:
        """Return examples of pass e by their indices."""
        return self._augmented(len(self._augmentations), e, rows)

    def element(self, e: int, k: int, shards: Shards | None = None) -> Any:
        """Return batch k of pass e, or this rank's part of it."""
        parts = self.read(e, self.rows(e, k, shards))
        return parts[0] if self.single else parts

    def _augmented(self, stage: int, e: int, rows: Rows) -> Parts:
        """Return examples after the first augmentations, `stage` of them."""
        if not stage:
            return self._batches.read(e, rows)
        last = self._augmentations[stage - 1]
        draws = None
        if self._key is not None and last.numbers:
            draws = rng.fold_in(rng.fold_in(self._key, self._before + stage), e), last.numbers
        index = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        parts = self._augmented(stage - 1, e, rows)
        others = lambda indices: self._augmented(stage - 1, e, indices)
        return last.apply(Examples(parts, index, self.length, others, draws))
