"""Augmentation: against NumPy image by image, and the same examples whatever the batch, rank or thread."""

import pickle

import numpy as np
import pytest

import treepie as tp

A = tp.augment
KEY = tp.rng.fold_in(tp.rng.key(2**40 + 7), 3)
N, CLASSES = 23, 5
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, 3, 6, 7)).astype("f4")
Y = np.eye(CLASSES, dtype="f4")[RNG.integers(0, CLASSES, N)]


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True)


def uniforms(key, stage, epoch, n, numbers):
    """The random numbers of all examples, (n, numbers), as one draw of `tp.rng`."""
    key = key if stage is None else tp.rng.fold_in(tp.rng.fold_in(key, stage), epoch)
    return tp.rng.uniform(key, (n, numbers), dtype=tp.float64).numpy()


def integer(u, low, high):
    return low + int(u * (high - low + 1))


# ---- references: (images, random numbers) -> images, one image at a time
def padded(image, top, left, height, width, fill):
    """A window, pixel by pixel."""
    out = np.full((*image.shape[:-2], height, width), fill, image.dtype)
    for i in range(height):
        for j in range(width):
            if 0 <= top + i < image.shape[-2] and 0 <= left + j < image.shape[-1]:
                out[..., i, j] = image[..., top + i, left + j]
    return out


def flipped(image, u, horizontal=0.5, vertical=0.0):
    image = image[..., ::-1, :] if u[0] < vertical else image
    return image[..., ::-1] if u[1] < horizontal else image


def cropped(image, u, size, padding=(0, 0), fill=0):
    room = [image.shape[k - 2] + 2 * padding[k] - size[k] for k in range(2)]
    top, left = (integer(u[k], 0, room[k]) - padding[k] for k in range(2))
    return padded(image, top, left, *size, fill)


def shifted(image, u, most, fill=0):
    top, left = (integer(u[k], -most[k], most[k]) for k in range(2))
    return padded(image, top, left, *image.shape[-2:], fill)


def box(shape, u, size):
    """Rows and columns of a box with a random center."""
    parts = []
    for k in range(2):
        start = integer(u[k], 0, shape[k - 2] - 1) - size[k] // 2
        parts.append(slice(max(start, 0), max(start + size[k], 0)))
    return tuple(parts)


def erased(image, u, size, fill=0):
    image = image.copy()
    image[(..., *box(image.shape, u, size))] = fill
    return image


def beta(u, alpha):
    """Devroye 1996."""
    power = (u[1] + 2.0**-54) ** (-1 / alpha)
    root = np.sqrt(1 + 1 / ((power - 1) * np.cos(2 * np.pi * u[2]) ** 2))
    return 0.5 + (-0.5 if u[3] < 0.5 else 0.5) / root


def jittered(image, u, brightness, contrast):
    b, c = 1 + brightness * (2 * u[0] - 1), 1 + contrast * (2 * u[1] - 1)
    mean = image.mean(dtype="f8")
    return b * (mean + c * (image - mean))


#: name -> augmentation, numbers of an example, reference.
CHANGES = {
    "flip": (A.flip(), 2, flipped),
    "flip both": (A.flip(0.25, 0.75), 2, lambda x, u: flipped(x, u, 0.25, 0.75)),
    "flip never": (A.flip(0.0), 2, lambda x, u: x),
    "crop": (A.crop(4), 2, lambda x, u: cropped(x, u, (4, 4))),
    "crop padded": (
        A.crop((6, 8), padding=2, fill=1.0),
        2,
        lambda x, u: cropped(x, u, (6, 8), (2, 2), 1),
    ),
    "crop one axis": (
        A.crop((5, 9), padding=(0, 3)),
        2,
        lambda x, u: cropped(x, u, (5, 9), (0, 3)),
    ),
    "crop far outside": (A.crop(1, padding=9), 2, lambda x, u: cropped(x, u, (1, 1), (9, 9))),
    "center_crop": (A.center_crop((3, 4)), 0, lambda x, u: x[..., 1:4, 1:5]),
    "shift": (A.shift(2), 2, lambda x, u: shifted(x, u, (2, 2))),
    "shift far": (A.shift((0, 20), fill=-1.0), 2, lambda x, u: shifted(x, u, (0, 20), -1)),
    "cutout": (A.cutout(3), 2, lambda x, u: erased(x, u, (3, 3))),
    "cutout wide": (A.cutout((2, 40), fill=2.0), 2, lambda x, u: erased(x, u, (2, 40), 2)),
}
every_change = pytest.mark.parametrize("name", CHANGES)


@every_change
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "u1"])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_each_image_is_what_numpy_computes(name, dtype, channels):
    augmentation, numbers, reference = CHANGES[name]
    x = RNG.integers(0, 100, (N, *channels, 6, 7)).astype(dtype)
    u = uniforms(KEY, None, 0, N, max(numbers, 1))
    result = augmentation(x, KEY)
    assert result.dtype == (np.int32 if dtype == "u1" else np.dtype(dtype))
    images = x.astype(result.dtype)
    same(result, np.stack([reference(image, row) for image, row in zip(images, u, strict=True)]))
    images, labels = augmentation((x, np.arange(N)), KEY)
    same(images, result)
    same(labels, np.arange(N))


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4"])
def test_jitter(dtype):
    x = RNG.integers(0, 100, (N, 3, 6, 7)).astype(dtype)
    u = uniforms(KEY, None, 0, N, 2)
    result = A.jitter(0.4, 0.7)(x, KEY)
    assert result.dtype == (np.float32 if dtype == "i4" else np.dtype(dtype))
    want = [jittered(image, row, 0.4, 0.7) for image, row in zip(x, u, strict=True)]
    tolerance = 1e-12 if dtype == "f8" else 1e-5
    np.testing.assert_allclose(result, want, rtol=tolerance, atol=100 * tolerance)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4"])
def test_mixup(alpha, dtype):
    """Images, targets and weights; features of any shape."""
    x = RNG.integers(0, 100, (N, 3, 6, 7)).astype(dtype)
    weights = RNG.random(N)
    u = uniforms(KEY, None, 0, N, 4)
    results = A.mixup(alpha)((x, Y, weights), KEY)
    assert [r.dtype.name[-2:] for r in results] == ["64" if dtype == "f8" else "32", "32", "64"]
    for part, result in zip((x, Y, weights), results, strict=True):
        for i, row in enumerate(u):
            j, share = integer(row[0], 0, N - 1), beta(row, alpha)
            want = share * part[i].astype("f8") + (1 - share) * part[j]
            np.testing.assert_allclose(np.asarray(result)[i], want, rtol=1e-5, atol=1e-5)
    features = A.mixup(alpha)((x.reshape(N, -1), Y), KEY)[0]
    same(features.reshape(x.shape), results[0])


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_cutmix(alpha):
    for channels in ((), (3,)):
        x = RNG.integers(0, 100, (N, *channels, 6, 7)).astype("i4")
        u = uniforms(KEY, None, 0, N, 6)
        images, targets = A.cutmix(alpha)((x, Y), KEY)
        assert images.dtype == np.int32
        boxes = []
        for i, row in enumerate(u):
            j, side = integer(row[0], 0, N - 1), np.sqrt(1 - beta(row, alpha))
            where = box(x.shape, row[4:], (int(6 * side), int(7 * side)))
            want = x[i].copy()
            want[(..., *where)] = x[j][(..., *where)]
            same(images[i], want)
            boxes.append(np.ones((6, 7))[where].size)
            share = 1 - boxes[-1] / 42
            np.testing.assert_allclose(targets[i], share * Y[i] + (1 - share) * Y[j], atol=1e-6)
        assert min(boxes) < max(boxes)


def test_a_function_of_ones_own():
    augmentation = A.custom(lambda x, u: x * u[:, 0].reshape(-1, 1, 1, 1) + u[:, 2].mean(), 3)
    u = uniforms(KEY, None, 0, N, 3).astype("f4")
    want = X * u[:, :1].reshape(-1, 1, 1, 1) + u[:, 2].mean()
    np.testing.assert_allclose(augmentation(X, KEY), want, rtol=1e-5, atol=1e-6)
    same(A.custom(lambda x, u: x.sum((2, 3)), 0)(X), tp.tensor(X).sum((2, 3)))
    kinds = []
    A.custom(lambda x, u: kinds.append(u.dtype.name) or x)(X.astype("f8"), KEY)
    A.custom(lambda x, u: kinds.append(u.dtype.name) or x)(X.astype("i4"), KEY)
    assert kinds == ["float64", "float32"]
    with pytest.raises(ValueError, match=r"custom: the function returned shape \(3,\) for 23 images"):
        A.custom(lambda x, u: x[:3, 0, 0, 0])(X, KEY)


# ---- distributions
MANY = 20_000


def test_flips_shifts_and_crops_are_equally_likely():
    x = np.arange(6.0).reshape(1, 2, 3).repeat(MANY, 0)
    flips = A.flip(0.5, 0.3)(x, KEY).numpy()
    assert abs((flips[:, 0, 0] % 3 == 2).mean() - 0.5) < 0.015
    assert abs((flips[:, 0, 0] >= 3).mean() - 0.3) < 0.015
    point = np.zeros((MANY, 5, 5))
    point[:, 2, 2] = 1
    for moved in (A.shift(2)(point, KEY), A.crop(5, padding=2)(point, KEY)):
        counts = moved.numpy().mean(0)
        np.testing.assert_allclose(counts, np.full((5, 5), 1 / 25), atol=0.006)
    erased = A.cutout(1, fill=1.0)(np.zeros((MANY, 5, 5)), KEY).numpy().mean(0)
    np.testing.assert_allclose(erased, np.full((5, 5), 1 / 25), atol=0.006)


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 5.0])
def test_weights_of_mixup_have_the_beta_distribution(alpha):
    """The moments of Beta(alpha, alpha), and partners from the whole data set."""
    mixed = A.mixup(alpha)(np.eye(MANY, 2, dtype="f8"), KEY).numpy()  # one row is (1, 0), one (0, 1)
    assert mixed[:2].sum() > 0
    from treepie.data.augmentation import Examples
    from treepie.data.images import beta as weights

    w = weights(Examples((), np.arange(MANY), MANY, None, (KEY, 4)), alpha)
    assert abs(w.mean() - 0.5) < 0.015
    assert abs(w.var() - 1 / (4 * (2 * alpha + 1))) < 0.005
    fourth = 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    assert abs(((w - 0.5) ** 4).mean() - fourth) < 0.002
    partners = Examples((), np.arange(MANY), 10, None, (KEY, 4)).integers(0, 0, 9)
    np.testing.assert_allclose(np.bincount(partners, minlength=10) / MANY, 0.1, atol=0.01)


# ---- errors, reprs, pickles
ERRORS = [
    (lambda: A.flip(1.5), ValueError, "augment.flip: horizontal is 1.5, expected 0 to 1"),
    (lambda: A.flip(True), TypeError, "augment.flip: horizontal is True, expected a number"),
    (lambda: A.crop(0), ValueError, "augment.crop: size is 0, expected at least 1"),
    (lambda: A.crop(3, padding=-1), ValueError, "augment.crop: padding is -1, expected at least 0"),
    (lambda: A.crop((1, 2, 3)), ValueError, r"size is \(1, 2, 3\), expected one number or two"),
    (lambda: A.crop(2.5), TypeError, "augment.crop: size is 2.5, expected an int"),
    (lambda: A.crop(2, fill=np.nan), ValueError, "augment.crop: fill is nan, expected a finite number"),
    (lambda: A.mixup(0), ValueError, "augment.mixup: alpha is 0, expected above 0"),
    (lambda: A.cutmix(-1.0), ValueError, "augment.cutmix: alpha is -1.0, expected above 0"),
    (lambda: A.jitter(contrast=2), ValueError, "augment.jitter: contrast is 2, expected 0 to 1"),
    (lambda: A.custom(3), TypeError, "augment.custom: fn is 3, expected a function"),
    (lambda: A.flip()(X), TypeError, "augment.flip: key is missing, expected one"),
    (lambda: A.flip()(X, 7), TypeError, r"augment.flip: key is 7, expected one .*tp.rng.key\(7\)"),
    (
        lambda: A.flip()(X.reshape(N, -1), KEY),
        ValueError,
        r"images have shape \(23, 126\), expected \(batch, height, width\) .*reshape\(-1, height, width\)",
    ),
    (
        lambda: A.flip()(np.zeros((2, 8, 9, 3)), KEY),
        ValueError,
        r"images have shape \(2, 8, 9, 3\), with channels last, expected .*transpose\(0, 3, 1, 2\)",
    ),
    (
        lambda: A.crop(9, padding=1)(X, KEY),
        ValueError,
        r"size is \(9, 9\), expected at most that of the images, \(6, 7\), padded by \(1, 1\)",
    ),
    (lambda: A.center_crop(9)(X), ValueError, r"center_crop: size is \(9, 9\), expected at most"),
    (lambda: A.shift(1, 0.5)(X.astype("i4"), KEY), ValueError, "fill is 0.5, expected an integer of 32"),
    (lambda: A.shift(1, 2.0)(X > 0, KEY), ValueError, "fill is 2, expected 0 or 1 for images of bools"),
    (lambda: A.flip()((X, Y[:3]), KEY), ValueError, r"augment.flip: shapes are .* of one length"),
    (
        lambda: tp.Data.prepare((X, np.arange(N)), 4).augment(A.mixup(), key=KEY),
        TypeError,
        r"augment.mixup: targets are int64 of shape \(1,\), expected floats.*tp.one_hot.*loss.cross_entropy",
    ),
    (
        lambda: tp.Data.prepare((X, np.arange(N)), 4).augment(A.cutmix(), key=KEY),
        TypeError,
        "augment.cutmix: targets are int64",
    ),
    (
        lambda: tp.Data.prepare(X, 4).augment(A.crop(9), key=KEY),
        ValueError,
        r"augment.crop: size is \(9, 9\)",
    ),
    (lambda: tp.Data.prepare(X, 4).augment(A.flip()), TypeError, "Data.augment: key is missing"),
    (
        lambda: tp.Data.prepare(X, 4).augment(A.flip, key=KEY),
        TypeError,
        r"an augmentation is the function flip, expected .*\(call it: tp.augment.flip\(\)\)",
    ),
    (
        lambda: tp.Data.prepare(X, 4).augment(KEY),
        TypeError,
        r"an augmentation is a tensor of shape \(2,\), expected some of tp.augment",
    ),
    (
        lambda: tp.Data.prepare(X, 4).prefetch(2).augment(A.flip(), key=KEY),
        ValueError,
        "Data.augment: the elements are not batches of Data.prepare, expected .*before map",
    ),
    (lambda: tp.Data.of_array([1]).augment(A.flip(), key=KEY), ValueError, "not batches of Data.prepare"),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS)
def test_errors(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


def test_feature_maps_of_few_pixels_are_no_channels_last():
    assert A.flip()(np.zeros((2, 64, 4, 4)), KEY).shape == (2, 64, 4, 4)


def test_data_without_numbers_need_no_key():
    data = tp.Data.prepare((X, np.arange(N)), 4).augment(A.center_crop(2))
    assert data.to_list()[0][0].shape == (4, 3, 2, 2)


def test_empty_batches_and_images():
    for augmentation in (A.flip(), A.shift(1), A.cutout(2), A.mixup(), A.cutmix(), A.jitter()):
        x, y = augmentation((X[:0], Y[:0]), KEY)
        assert x.shape == (0, 3, 6, 7)
        assert y.shape == (0, CLASSES)
    assert A.flip()(np.zeros((2, 0, 3)), KEY).shape == (2, 0, 3)
    assert A.jitter()(np.zeros((2, 0, 3)), KEY).shape == (2, 0, 3)


def test_reprs_and_pickles():
    texts = {A.crop(32, padding=4): "crop(32, padding=4)", A.mixup(0.4): "mixup(alpha=0.4)"}
    for augmentation, text in texts.items():
        assert repr(augmentation) == text
    data = tp.Data.prepare((X, Y), 4).augment(A.flip(), key=KEY)
    assert "augment(flip(), key=" in repr(data)
    copy = pickle.loads(pickle.dumps(A.crop(5, padding=1)))
    same(copy(X, KEY), A.crop(5, padding=1)(X, KEY))
