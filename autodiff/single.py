"""A single element of a tensor as a number of Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray


class Single:
    """The conversions of a tensor with one element."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def array(self) -> NDArray[Any]:
            """The elements."""

        @property
        def shape(self) -> tuple[int, ...]:
            """Sizes of the axes."""

        @property
        def dtype(self) -> np.dtype:
            """Type of the elements."""

        @property
        def size(self) -> int:
            """Number of elements."""

    def item(self) -> float | int | bool:
        """Return the only element as a Python number.

        Raises ValueError for a tensor of more elements, or none.

        >>> import treepie as tp
        >>> tp.tensor([2.5]).item()
        2.5
        """
        if self.size != 1:
            raise ValueError(f"item: a tensor of shape {self.shape} has {self.size} elements, expected 1")
        value: float | int | bool = self.array.item()
        return value

    def __float__(self) -> float:
        """Return the only element as a float."""
        return float(self.item())

    def __int__(self) -> int:
        """Return the only element as an int."""
        return int(self.item())

    def __bool__(self) -> bool:
        """Return the truth of the only element."""
        return bool(self.item())

    def __index__(self) -> int:
        """Return the only element of an integer tensor as an int."""
        if self.dtype.kind != "i":
            raise TypeError(f"index: expected an integer tensor, got {self.dtype.name}")
        return int(self.item())

    def __format__(self, spec: str) -> str:
        """Format a single element as a number; others as `str` does, or as their text where a spec fits it.

        Raises TypeError for a spec of numbers and other than one element.
        """
        if spec and self.size == 1:
            return format(self.item(), spec)
        text = str(self)  # a read, which a trace may refuse by another ValueError
        try:
            return format(text, spec)
        except ValueError:
            raise TypeError(
                f"tensor: the format {spec!r} is for one number, and the shape is {self.shape}: format an "
                "element such as x[0], or print x.numpy() with np.printoptions(precision=2)"
            ) from None

    def __round__(self, digits: int | None = None) -> float | int:
        """Return the only element rounded, as Python's number; TypeError for other than one element."""
        if self.size != 1:
            raise TypeError(
                f"round: the tensor has shape {self.shape}, expected one element (or tp.round(x))"
            )
        return round(self.item(), digits)
