"""The processes that train together, each on its shard of every batch."""

from .communicator import Communicator as Communicator
from .local import Local as Local
from .world import world as world

__all__ = ["Communicator", "Local", "world"]
