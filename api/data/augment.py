"""Augmentation of images: random changes of each example, anew in each pass, for `Data.augment`.

Images are (batch, height, width) or (batch, channels, height, width), as convolutions take them. Images of
uint8 come as int32 from `Data.prepare`. The random numbers of an example depend on the key, the pass and the
index of the example alone; see `Data.augment`. Data for validation gets none.

>>> import treepie as tp
>>> (x, y), (x_test, y_test) = tp.datasets.digits()
>>> x, y = x.reshape(-1, 1, 8, 8), tp.one_hot(y, 10)
>>> train = tp.Data.prepare((x, y), batch_size=64, shuffle=tp.rng.key(0))
>>> train = train.augment(tp.augment.shift(1), tp.augment.mixup(0.2), key=tp.rng.key(1))
>>> [part.shape for part in next(iter(train))]
[(64, 1, 8, 8), (64, 10)]
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from treepie.autodiff import Tensor, ops
from treepie.autodiff.arguments import as_tensor, described, integer
from treepie.autodiff.ops import images as image_ops

from ..pickling import constructor
from .augmentation import Augmentation as Augmentation, Examples, Parts
from .images import (
    Size,
    beta,
    check_number,
    check_targets,
    filling,
    floats,
    image_size,
    images_of,
    mixed,
    partners_of,
    random_boxes,
    room,
    size_of,
    windowed,
    with_images,
)

__all__ = [
    "Augmentation",
    "center_crop",
    "crop",
    "custom",
    "cutmix",
    "cutout",
    "flip",
    "jitter",
    "mixup",
    "shift",
]


def __dir__() -> list[str]:
    return __all__


# ---- windows and boxes
@constructor
def flip(horizontal: float = 0.5, vertical: float = 0.0) -> Augmentation:
    """Return the augmentation that mirrors images.

    horizontal, vertical: the probability to exchange left and right, and top and bottom.

    Raises ValueError for a probability outside of [0, 1].

    >>> import treepie as tp
    >>> tp.augment.flip(vertical=1.0)(tp.tensor([[[1, 1], [2, 2]]]), tp.rng.key(0)).tolist()
    [[[2, 2], [1, 1]]]
    """
    name = "augment.flip"
    check_number(name, "horizontal", horizontal, 0.0, 1.0)
    check_number(name, "vertical", vertical, 0.0, 1.0)

    def apply(examples: Examples) -> Parts:
        zeros, size = np.zeros(len(examples.index), np.int64), image_size(name, examples)
        chances = (vertical, horizontal)
        flips = [examples.uniform(k) < chance for k, chance in enumerate(chances)]
        return windowed(name, examples, [zeros, zeros, *flips], size, 0.0)

    return Augmentation(name, apply, 2)


@constructor
def crop(size: Size, padding: Size = 0, fill: float = 0.0) -> Augmentation:
    """Return the augmentation that crops images at random positions.

    size: of the crop, (height, width), or one number for both.  padding: pixels that are added first at
        either end, of height and of width, or one number for both.  fill: their value.

    Raises ValueError for images that are smaller than the crop, with their padding.

    >>> import treepie as tp
    >>> tp.augment.crop(32, padding=4)(tp.zeros((2, 3, 32, 32)), tp.rng.key(0)).shape
    (2, 3, 32, 32)
    """
    name = "augment.crop"
    window, added = size_of(name, "size", size, 1), size_of(name, "padding", padding, 0)
    value = check_number(name, "fill", fill)

    def apply(examples: Examples) -> Parts:
        starts = []
        for k, most in enumerate(room(name, examples, window, added)):
            starts.append(examples.integers(k, -added[k], most - added[k]))
        return windowed(name, examples, starts, window, value)

    return Augmentation(name, apply, 2)


@constructor
def center_crop(size: Size) -> Augmentation:
    """Return the crop of the middle of images, which draws no numbers.

    size: of the crop, (height, width), or one number for both.

    Raises ValueError for images that are smaller than the crop.

    >>> import treepie as tp
    >>> tp.augment.center_crop(2)(tp.arange(16).reshape(1, 4, 4)).tolist()
    [[[5, 6], [9, 10]]]
    """
    name = "augment.center_crop"
    window = size_of(name, "size", size, 1)

    def apply(examples: Examples) -> Parts:
        n = len(examples.index)
        starts = [np.full(n, most // 2) for most in room(name, examples, window, (0, 0))]
        return windowed(name, examples, starts, window, 0.0)

    return Augmentation(name, apply, 0)


@constructor
def shift(pixels: Size, fill: float = 0.0) -> Augmentation:
    """Return the augmentation that shifts images by whole pixels.

    pixels: the most, up or down and left or right, or one number for both; all shifts are equally likely.
    fill: the value of pixels that come from outside of the image.

    >>> import treepie as tp
    >>> tp.augment.shift((0, 1))(tp.ones((1, 2, 3)), tp.rng.key(3)).tolist()
    [[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]]
    """
    name = "augment.shift"
    most, value = size_of(name, "pixels", pixels, 0), check_number(name, "fill", fill)

    def apply(examples: Examples) -> Parts:
        starts = [examples.integers(k, -m, m) for k, m in enumerate(most)]
        return windowed(name, examples, starts, image_size(name, examples), value)

    return Augmentation(name, apply, 2)


@constructor
def cutout(size: Size, fill: float = 0.0) -> Augmentation:
    """Return the augmentation that erases a box of each image.

    size: of the box, (height, width), or one number for both. Its center is anywhere in the image, whose
        edges cut it off.  fill: the value of erased pixels.

    Source: DeVries & Taylor 2017, "Improved regularization of convolutional neural networks with cutout".

    >>> import treepie as tp
    >>> tp.augment.cutout(1)(tp.ones((1, 8, 8)), tp.rng.key(0)).sum().item()
    63.0
    """
    name = "augment.cutout"
    box, value = size_of(name, "size", size, 1), check_number(name, "fill", fill)

    def apply(examples: Examples) -> Parts:
        x = images_of(name, examples)
        sides = [np.full(len(examples.index), side) for side in box]
        erased = image_ops.image_boxes(x, filling(name, x, value), random_boxes(examples, sides, x.shape[2:]))
        return with_images(examples, erased)

    return Augmentation(name, apply, 2)


# ---- mixtures with other examples
@constructor
def mixup(alpha: float = 0.2) -> Augmentation:
    """Return the augmentation that mixes each example with another one: weight * a + (1 - weight) * b.

    alpha: of the distribution of weights, Beta(alpha, alpha); above 0. Other examples are drawn from the
    whole data set, with the augmentations that come before applied to them, which doubles their time. All
    parts of a batch are mixed: images, targets and sample weights, which become floats. Targets are floats,
    such as `tp.one_hot(y, classes)` with `loss=tp.loss.cross_entropy`.

    Raises TypeError for targets that are integers, ValueError for alpha <= 0.

    Source: Zhang, Cisse, Dauphin & Lopez-Paz 2018, "mixup: Beyond empirical risk minimization".

    >>> import treepie as tp
    >>> x, y = tp.rng.normal(tp.rng.key(0), (4, 1, 8, 8)), tp.one_hot(tp.arange(4), 4)
    >>> x, y = tp.augment.mixup(0.4)((x, y), tp.rng.key(1))
    >>> y.sum(1).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    name = "augment.mixup"
    check_number(name, "alpha", alpha, least=0.0, open_end=True)

    def apply(examples: Examples) -> Parts:
        check_targets(name, examples)
        partners, weights = partners_of(examples), beta(examples, alpha)
        pairs = zip(examples.parts, partners, strict=True)
        return tuple([mixed(part, other, weights) for part, other in pairs])

    return Augmentation(name, apply, 4)


@constructor
def cutmix(alpha: float = 1.0) -> Augmentation:
    """Return the augmentation that replaces a box of each image by that of another example.

    alpha: the part of the image that stays has the distribution Beta(alpha, alpha) before the image's edges
    cut off the box; above 0. The other parts of a batch, targets and sample weights, are mixed by the area
    of the box. Otherwise as `mixup`.

    Raises TypeError for targets that are integers, ValueError for alpha <= 0.

    Source: Yun et al. 2019, "CutMix: Regularization strategy to train strong classifiers with localizable
    features".

    >>> import treepie as tp
    >>> x, y = tp.ones((4, 1, 8, 8)), tp.one_hot(tp.arange(4), 4)
    >>> x, y = tp.augment.cutmix()((x, y), tp.rng.key(1))
    >>> y.sum(1).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    name = "augment.cutmix"
    check_number(name, "alpha", alpha, least=0.0, open_end=True)

    def apply(examples: Examples) -> Parts:
        x = images_of(name, examples)
        check_targets(name, examples)
        partners, size = partners_of(examples), x.shape[2:]
        side = np.sqrt(1.0 - beta(examples, alpha))
        boxes = random_boxes(examples, [(side * n).astype(np.int64) for n in size], size, first=4)
        places = boxes.numpy()
        area = (places[:, 1] - places[:, 0]) * (places[:, 3] - places[:, 2])
        weights = 1.0 - area / max(math.prod(size), 1)
        pasted = image_ops.image_boxes(x, partners[0].reshape(x.shape), boxes)
        rest = zip(examples.parts[1:], partners[1:], strict=True)
        return (*with_images(examples, pasted)[:1], *[mixed(part, other, weights) for part, other in rest])

    return Augmentation(name, apply, 6)


# ---- values
@constructor
def jitter(brightness: float = 0.2, contrast: float = 0.2) -> Augmentation:
    """Return the augmentation that changes brightness and contrast of images.

    brightness, contrast: in [0, 1]. Each image gets factors b, c in [1 - brightness, 1 + brightness] and in
    [1 - contrast, 1 + contrast], and becomes b * (mean + c * (x - mean)), with its own mean. Results are
    floats and are not clipped.

    >>> import treepie as tp
    >>> tp.augment.jitter(0.5, 0.0)(tp.ones((3, 8, 8)), tp.rng.key(0)).std(axis=(1, 2)).tolist()
    [0.0, 0.0, 0.0]
    """
    name = "augment.jitter"
    amounts = [
        check_number(name, argument, value, 0.0, 1.0)
        for argument, value in (("brightness", brightness), ("contrast", contrast))
    ]

    def apply(examples: Examples) -> Parts:
        x = floats(images_of(name, examples))
        b, c = (
            Tensor((1 + a * (2 * examples.uniform(k) - 1)).astype(x.dtype).reshape(-1, 1), None)
            for k, a in enumerate(amounts)
        )
        flat = x.reshape(len(x), math.prod(x.shape[1:]))
        mean = ops.mean(flat, 1, keepdims=True) if flat.size else flat[:, :1]
        return with_images(examples, ops.add(ops.mul(flat, c * b), mean * b * (1 - c)))

    return Augmentation(name, apply, 2)


@constructor
def custom(fn: Callable[[Tensor, Tensor], Tensor], numbers: int = 1) -> Augmentation:
    """Return the augmentation of a function of yours.

    fn: (images, random numbers) -> images, of the whole batch at once.  numbers: how many numbers an example
        gets, up to 65536, uniform in [0, 1): (batch, numbers), of the dtype of float images, else float32.

    Raises ValueError where the function returns another number of images.

    >>> import treepie as tp
    >>> fade = tp.augment.custom(lambda x, u: x * u.reshape(-1, 1, 1))
    >>> fade(tp.ones((3, 8, 8)), tp.rng.key(0)).shape
    (3, 8, 8)
    """
    name = "augment.custom"
    if not callable(fn):
        raise TypeError(f"{name}: fn is {described(fn)}, expected a function of images and random numbers")
    count = integer(name, "numbers", numbers, 0, 2**16)

    def apply(examples: Examples) -> Parts:
        x, n = examples.parts[0], len(examples.index)
        u = np.empty((n, count), x.dtype if x.dtype.kind == "f" else np.float32)
        below = np.nextafter(u.dtype.type(1), u.dtype.type(0))  # rounding to float32 can reach 1
        for k in range(count):
            u[:, k] = np.minimum(examples.uniform(k), below)
        images = as_tensor(fn(x, Tensor(u, None)))
        if images.shape[:1] != (n,):
            raise ValueError(
                f"{name}: the function returned shape {images.shape} for {n} images, expected {n} of them"
            )
        return images, *examples.parts[1:]

    return Augmentation(name, apply, count)
