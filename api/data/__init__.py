"""Data: lazy pipelines of examples, and data sets."""

from ..namespace import public_names as _public_names
from .pipeline import Data as Data
from .rows import stack_batch as stack_batch

__all__ = _public_names(globals())


def __dir__() -> list[str]:
    return __all__
