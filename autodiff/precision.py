"""The precision of matrix products of float32 tensors."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from treepie.kernels import bfloat16
from treepie.kernels.frames import warn

from .trace.active import Setting, state

if TYPE_CHECKING:
    from .tensor import Tensor

FLOAT32, BFLOAT16, EMULATED = "float32", "bfloat16", "bfloat16_emulated"
PRECISIONS = (FLOAT32, BFLOAT16, EMULATED)
_FLOAT32 = np.dtype("float32")


def precision(name: str) -> Setting:
    """Compute matrix products of float32 tensors in another precision, in a block or a decorated function.

    name: "float32"; "bfloat16", which rounds the operands of each product to bfloat16 (8 bits of precision,
        to nearest even) and adds up in float32; or "bfloat16_emulated", which rounds in the same way and
        multiplies in float32, for results that do not depend on the CPU but for the order of sums.

    It is that of `matmul`, `@`, `einsum`, linear layers, convolutions, attention and recurrent layers, and
    of their gradients. In attention, scale q, k, v, the exponentials that the softmax sums, less the largest
    score so far, and in gradients the probabilities and the gradients of result and scores are rounded; in
    recurrent layers the states, or the gradients of gates, that the weight multiplies. Tensors stay float32.
    In bfloat16, an element of a product is within 2^-8 of the sum of the magnitudes of its terms. Infinities
    and NaN stay what they are; on CPUs with AVX512-BF16 or ARM's BF16, one of which "bfloat16" needs,
    subnormal operands and results count as 0. Elsewhere "bfloat16" is float32, and says so once. Where there
    is AMX, Linux lets a process use it on request, and products of 4 rows and more do.

    Raises ValueError for another name.

    >>> import treepie as tp
    >>> x = tp.tensor([[1.0 + 2**-9]])
    >>> with tp.precision("bfloat16_emulated"):
    ...     print((x @ tp.ones((1, 1))).item())
    1.0
    """
    return Setting("precision", checked_precision("precision", name))


def attribute(x: Tensor, name: str | None) -> dict[str, str]:
    """Return the attribute of a product that is not computed in float32. name: None for that of the block."""
    name = state.precision if name is None else name
    return {} if name is None or name == FLOAT32 or x._data.dtype != _FLOAT32 else {"precision": name}


def checked_precision(function: str, name: str) -> str:
    """Return the precision that this CPU has for a name, or raise ValueError."""
    if name not in PRECISIONS:
        names = ", ".join(map(repr, PRECISIONS))
        raise ValueError(f"{function}: precision is {name!r}, expected one of {names}")
    if name == BFLOAT16 and not bfloat16.native():
        _say_float32()
        return FLOAT32
    return name


@functools.cache
def _say_float32() -> None:
    warn(
        "precision: this CPU does not multiply in bfloat16 (AVX512-BF16, ARM's BF16); products are computed "
        "in float32"
    )
