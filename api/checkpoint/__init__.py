"""Checkpoints: trees and training states in safetensors files."""

from ..namespace import public_names as _public_names
from .checkpoint import (
    Every as Every,
    every as every,
    load as load,
    load_state as load_state,
    save as save,
    save_state as save_state,
)

__all__ = _public_names(globals())


def __dir__() -> list[str]:
    return __all__
