"""What augmentations of images have in common: checks, windows, boxes, and mixtures of examples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff import Tensor, ops
from treepie.autodiff.arguments import described, integer
from treepie.autodiff.limits import check_total
from treepie.autodiff.ops import images as image_ops

from .augmentation import Examples, Parts

#: Pixels of height and width, or one number for both.
Size = int | tuple[int, int]


def check_number(
    name: str,
    argument: str,
    value: float,
    least: float = -math.inf,
    most: float = math.inf,
    open_end: bool = False,
) -> float:
    """Return a finite number of `least` to `most`, or raise. open_end: whether it is above `least`."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name}: {argument} is {described(value)}, expected a number")
    if not (least < value if open_end else least <= value) or not value <= most or not math.isfinite(value):
        bounds = f"above {least:g}" if open_end else f"{least:g} to {most:g}"
        raise ValueError(
            f"{name}: {argument} is {value}, expected {'a finite number' if least == -math.inf else bounds}"
        )
    return float(value)


def size_of(name: str, argument: str, size: Size, least: int) -> tuple[int, int]:
    """Return a size as (height, width), or raise."""
    pair = size if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2:
        raise ValueError(f"{name}: {argument} is {size}, expected one number or two, (height, width)")
    most = 2**31 - 1
    return integer(name, argument, pair[0], least, most), integer(name, argument, pair[1], least, most)


# ---- images
def images_of(name: str, examples: Examples) -> Tensor:
    """Return the images as (batch, channels, height, width), or raise ValueError."""
    x = examples.parts[0]
    expected = "expected (batch, height, width) or (batch, channels, height, width)"
    if x.ndim not in (3, 4):
        hint = " (for rows of pixels: x.reshape(-1, height, width))" if x.ndim == 2 else ""
        raise ValueError(f"{name}: images have shape {x.shape}, {expected}{hint}")
    if x.ndim == 4 and x.shape[3] in (1, 3, 4) and min(x.shape[1:3]) > 4:
        raise ValueError(
            f"{name}: images have shape {x.shape}, with channels last, {expected}: "
            "np.ascontiguousarray(x.transpose(0, 3, 1, 2))"
        )
    return x.reshape(len(x), 1, *x.shape[1:]) if x.ndim == 3 else x


def image_size(name: str, examples: Examples) -> tuple[int, int]:
    """Return the height and width of the images."""
    height, width = images_of(name, examples).shape[2:]
    return height, width


def with_images(examples: Examples, images: Tensor) -> Parts:
    """Return the examples with other images, of as many axes as theirs."""
    x = examples.parts[0]
    size = images.shape[2:] if images.ndim == 4 else x.shape[-2:]
    return images.reshape(*x.shape[:-2], *size), *examples.parts[1:]


def room(name: str, examples: Examples, window: tuple[int, int], padding: tuple[int, int]) -> tuple[int, int]:
    """Return the largest first row and column of a window in padded images."""
    size = image_size(name, examples)
    room = tuple(n + 2 * p - w for n, p, w in zip(size, padding, window, strict=True))
    if min(room) < 0:
        padded = f", padded by {padding}" if any(padding) else ""
        raise ValueError(f"{name}: size is {window}, expected at most that of the images, {size}{padded}")
    return room[0], room[1]


def windowed(
    name: str,
    examples: Examples,
    columns: list[NDArray[Any]],
    size: tuple[int, int],
    fill: float,
) -> Parts:
    """Return the examples with windows of their images; columns: first rows and columns, and flips."""
    x = images_of(name, examples)
    filling(name, x, fill)
    check_total(name, (*x.shape[:2], *size))
    places = np.zeros((len(x), 4), np.int64)
    for k, column in enumerate(columns):
        places[:, k] = column
    return with_images(examples, image_ops.image_windows(x, Tensor(places, None), size, fill))


def filling(name: str, x: Tensor, fill: float) -> Tensor:
    """Return a pixel of a value, or raise ValueError where images of integers can not have it."""
    if x.dtype.kind == "b" and fill not in (0, 1):
        raise ValueError(f"{name}: fill is {fill:g}, expected 0 or 1 for images of bools")
    if x.dtype.kind == "i" and (fill != int(fill) or abs(fill) >= 2**31):
        raise ValueError(f"{name}: fill is {fill:g}, expected an integer of 32 bits for images of integers")
    with np.errstate(over="ignore"):  # a float beyond float32's range becomes inf, as everywhere
        return Tensor(np.array(fill).astype(x.dtype), None)


def random_boxes(
    examples: Examples, sides: list[NDArray[np.int64]], size: tuple[int, ...], first: int = 0
) -> Tensor:
    """Return boxes with random centers, cut off at the edges of the images.

    first: the number of the first of the two random numbers.
    """
    places = np.zeros((len(examples.index), 4), np.int64)
    for k, (side, n) in enumerate(zip(sides, size, strict=True)):
        start = examples.integers(first + k, 0, n - 1) - side // 2
        places[:, 2 * k], places[:, 2 * k + 1] = np.clip(start, 0, n), np.clip(start + side, 0, n)
    return Tensor(places, None)


# ---- mixtures
def check_targets(name: str, examples: Examples) -> None:
    """Raise TypeError where parts besides the images are no floats."""
    for part in examples.parts[1:]:
        if part.dtype.kind != "f":
            raise TypeError(
                f"{name}: targets are {part.dtype.name} of shape {part.shape}, expected floats, which can be "
                "mixed: tp.Data.prepare((x, tp.one_hot(y, classes)), ...) and loss=tp.loss.cross_entropy"
            )


def partners_of(examples: Examples) -> Parts:
    """Return another example for each, by its first random number."""
    if not len(examples.index):
        return examples.parts
    return examples.others(examples.integers(0, 0, examples.count - 1))


def beta(examples: Examples, alpha: float) -> NDArray[np.float64]:
    """Return numbers of the distribution Beta(alpha, alpha), by three random numbers from the second on.

    Source: Devroye 1996, "Random variate generation in one line of code", for the symmetric beta
    distribution. Exponentials, logarithms and cosines are ops, which have the same bits on all machines.
    """
    u = examples.uniform(1) + 2.0**-54  # in (0, 1)
    sign = np.where(examples.uniform(3) < 0.5, -0.5, 0.5)
    if not u.size:
        return u
    power = ops.exp(ops.log(Tensor(u, None)) * (-1.0 / alpha)).numpy()
    turn = ops.cos(Tensor(2 * math.pi * examples.uniform(2), None)).numpy()
    with np.errstate(divide="ignore", over="ignore"):
        root: NDArray[np.float64] = np.sqrt(1 + 1 / ((power - 1) * turn**2))
    return 0.5 + sign / root


def floats(x: Tensor) -> Tensor:
    """Return a tensor of floats: integers and bools become float32."""
    return x if x.dtype.kind == "f" else x.astype(np.float32)


def mixed(part: Tensor, other: Tensor, weights: NDArray[np.float64]) -> Tensor:
    """Return weights * part + (1 - weights) * other, with a weight for each example."""
    a, b = floats(part), floats(other)
    rows = (len(a), math.prod(a.shape[1:]))
    column = Tensor(weights.astype(a.dtype).reshape(-1, 1), None)
    return image_ops.blend_rows(a.reshape(rows), b.reshape(rows), column).reshape(part.shape)
