"""Pretrained weights: safetensors files in a folder, or of a model on the Hugging Face hub.

Weights of other libraries have names and layouts of theirs: `rename` changes them, `assign` puts them into a
model and reports which names differ.
"""

from ..namespace import public_names as _public_names
from .load import load_config as load_config, load_weights as load_weights
from .names import Report as Report, assign as assign, rename as rename

__all__ = _public_names(globals())


def __dir__() -> list[str]:
    return __all__
