"""Checks of the arguments of `Trainer.fit` and `Trainer.step`."""

from __future__ import annotations

from collections.abc import Mapping

from treepie.autodiff.arguments import integer

from ..data.check import check_has_elements
from ..data.pipeline import Data
from ..distributed.communicator import Communicator, check_communicator
from ..metric.accumulators import Metric
from .checks import check_clip_norm, check_validation

Validation = tuple[Data, Mapping[str, Metric]]


def check_options(
    counts: Mapping[str, int],
    on_nonfinite: str,
    clip_norm: float | None,
    comm: Communicator | None,
    validate: Validation | None,
) -> None:
    """Raise TypeError or ValueError for arguments of `fit` that are wrong by themselves."""
    for argument, count in counts.items():
        integer("Trainer.fit", argument, count, least=1)
    if on_nonfinite not in ("raise", "skip"):
        raise ValueError(f"Trainer.fit: on_nonfinite is {on_nonfinite!r}, expected 'raise' or 'skip'")
    if clip_norm is not None:
        check_clip_norm("Trainer.fit", clip_norm)
    if comm is not None:
        check_communicator("Trainer.fit", comm)
    if validate is not None:
        check_has_elements("Trainer.fit, validate", check_validation("Trainer.fit", validate))
