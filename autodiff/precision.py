"""The precision of matrix products of float32 tensors."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from treepie.kernels import bfloat16

from .trace.active import state

R = TypeVar("R")

FLOAT32, BFLOAT16, EMULATED = "float32", "bfloat16", "bfloat16_emulated"
PRECISIONS = (FLOAT32, BFLOAT16, EMULATED)


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Compute matrix products of float32 tensors in another precision, in a block or a decorated function.

    name: "float32"; "bfloat16", which rounds the operands of each product to bfloat16 (8 bits of precision,
        to nearest even) and adds up in float32; or "bfloat16_emulated", which rounds in the same way and
        multiplies in float32, for results that do not depend on the CPU but for the order of sums.

    It is that of `matmul`, `@`, `einsum`, linear layers and the projections of attention and recurrent
    layers, and of their gradients; convolutions and the products inside of attention stay in float32. Tensors
    stay float32. In bfloat16, an element of a product is within 2^-8 of the sum of the magnitudes of its
    terms. Infinities and NaN stay what they are; on CPUs with AVX512-BF16, which "bfloat16" needs, subnormal
    operands and results count as 0. Elsewhere "bfloat16" is float32, and says so once.

    Raises ValueError for another name.

    >>> import treepie as tp
    >>> x = tp.tensor([[1.0 + 2**-9]])
    >>> with tp.precision("bfloat16_emulated"):
    ...     print((x @ tp.ones((1, 1))).item())
    1.0
    """
    before = state.precision
    state.precision = checked_precision("precision", name)
    try:
        yield
    finally:
        state.precision = before


def current() -> str | None:
    """Return the precision of the block; None without one, for float32."""
    return state.precision


def call_in(name: str | None, function: Callable[..., R], *arguments: Any) -> R:
    """Call a function in a precision, as `state.precision` has it; None leaves that of the block."""
    before = state.precision
    state.precision = before if name is None else name
    try:
        return function(*arguments)
    finally:
        state.precision = before


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
    warnings.warn(
        "precision: this CPU does not multiply in bfloat16 (AVX512-BF16); products are computed in float32",
        RuntimeWarning,
        stacklevel=4,
    )
