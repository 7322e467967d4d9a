"""Models as ONNX files, which onnxruntime and many other programs run without treepie.

The package `onnx` is imported when the first file is written: `pip install "treepie[onnx]"`.
"""

from ..namespace import public_names as _public_names
from .save import save as save

__all__ = _public_names(globals())


def __dir__() -> list[str]:
    return __all__
