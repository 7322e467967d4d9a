"""Checks of the arguments of `Trainer.fit` and `Trainer.step`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from treepie.autodiff import Tensor
from treepie.autodiff.arguments import integer

from ..data.check import check_has_elements
from ..data.pipeline import Data
from ..distributed.communicator import Communicator, check_communicator
from ..metric.accumulators import Metric
from .checks import check_clip_norm, check_rngs, check_validation, is_summed
from .ranks import Ranks
from .weights import ClassWeight

Validation = tuple[Data, Mapping[str, Metric]]


def check_options(
    same: Mapping[str, Any], on_nonfinite: str, comm: Communicator | None, validate: Validation | None
) -> None:
    """Raise TypeError or ValueError for arguments of `fit` that are wrong by themselves.

    same: those that are the same on all ranks, by their names.
    """
    for argument in ("epochs", "accumulate_steps", "compare_every", "micro_shards"):
        if argument != "micro_shards" or same[argument] is not None:
            integer("Trainer.fit", argument, same[argument], least=1)
    clip_norm = same["clip_norm"]
    if on_nonfinite not in ("raise", "skip"):
        raise ValueError(f"Trainer.fit: on_nonfinite is {on_nonfinite!r}, expected 'raise' or 'skip'")
    if clip_norm is not None:
        check_clip_norm("Trainer.fit", clip_norm)
    if comm is not None:
        check_communicator("Trainer.fit", comm)
    if validate is not None:
        check_has_elements("Trainer.fit, validate", check_validation("Trainer.fit", validate))
    is_summed("Trainer.fit", same["loss_reduction"])


def check_same_options(
    ranks: Ranks, same: Mapping[str, Any], class_weight: ClassWeight | None, rngs: Tensor | None
) -> None:
    """Raise ValueError where arguments of `fit` differ between ranks. same: as for `check_options`."""
    ranks.check_same(
        **same,
        class_weight=None if class_weight is None else str(class_weight),
        rngs=None if rngs is None else check_rngs("Trainer.fit", rngs).tolist(),
    )
