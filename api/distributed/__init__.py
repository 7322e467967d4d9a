"""The processes that train together, each on its shard of every batch."""

from .communicator import Communicator as Communicator
from .failures import install as _end_all_ranks_with_one
from .local import Local as Local
from .world import world as world

_end_all_ranks_with_one()

__all__ = ["Communicator", "Local", "world"]


def __dir__() -> list[str]:
    return __all__
