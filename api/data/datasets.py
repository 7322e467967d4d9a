"""Small data sets: one included in the package, one downloaded."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import math
import os
import sys
import uuid
import zlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff import Tensor, tensor
from treepie.kernels import cache, config

__all__ = ["digits", "mnist"]


def __dir__() -> list[str]:
    return __all__


Split = tuple[Tensor, Tensor]

#: Mirrors of MNIST's gzipped files, in the order in which they are tried.
_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

#: MNIST's files, and the SHA-256 of each when unzipped: mirrors compress them differently.
_MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

#: The largest size of a file, zipped or not; a download reads no more.
_LARGEST = 2**26

#: Seconds that a mirror may stay silent.
_PATIENCE = 30.0


def digits() -> tuple[Split, Split]:
    """Return handwritten digits, 8 by 8 pixels: ((x_train, y_train), (x_test, y_test)).

    x: (1437, 64) and (360, 64) float32 in [0, 1].  y: int32 in 0..9.  Every fifth image, from the first on,
    is a test image; the same thirteen writers contributed to both parts.

    Source: Optical Recognition of Handwritten Digits, its test part, E. Alpaydin and C. Kaynak,
    1998, UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0.

    >>> import treepie as tp
    >>> (x_train, y_train), (x_test, y_test) = tp.datasets.digits()
    >>> x_train.shape, y_test.shape
    ((1437, 64), (360,))
    """
    with (files(__package__) / "files" / "digits.npz").open("rb") as file, np.load(file) as stored:
        x, y = stored["images"].astype(np.float32) / 16, stored["labels"].astype(np.int32)
    test = np.arange(len(y)) % 5 == 0
    return (tensor(x[~test]), tensor(y[~test])), (tensor(x[test]), tensor(y[test]))


def mnist(path: str | os.PathLike[str] | None = None) -> tuple[Split, Split]:
    """Return handwritten digits, 28 by 28 pixels: ((x_train, y_train), (x_test, y_test)).

    x: (60000, 28, 28) and (10000, 28, 28) float32 in [0, 1], 188 and 31 MB.  y: int32 in 0..9.
    path: a folder with the four files `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`,
        `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, gzipped or not. None downloads them (12 MB)
        into the folder `mnist` in `TREEPIE_DATA_DIR`, by default `treepie/datasets` in the user's cache
        folder, and verifies their checksums whenever they are read.

    Raises FileNotFoundError for a missing file, ValueError for a damaged one, OSError if no mirror has them.

    Source: The MNIST Database of Handwritten Digits, Y. LeCun, C. Cortes and C. Burges, 1998.

    >>> import treepie as tp
    >>> (x_train, y_train), (x_test, y_test) = tp.datasets.mnist("data/mnist")  # doctest: +SKIP
    """
    if path is None:
        folder = _cache_folder()
        contents = {name: (str(folder / f"{name}.gz"), _cached(folder, name)) for name in _MNIST}
    else:
        contents = {name: _find(Path(path).expanduser(), name) for name in _MNIST}
    train, test = (
        _split(contents[f"{part}-images-idx3-ubyte"], contents[f"{part}-labels-idx1-ubyte"])
        for part in ("train", "t10k")
    )
    return train, test


# ---- files
def _find(folder: Path, name: str) -> tuple[str, bytes]:
    """Return the path and content of a file in a user's folder, by any of its usual names."""
    names = [f"{n}{end}" for n in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
    for path in (folder / n for n in names):
        if path.is_file():
            return str(path), _unzipped(str(path), path.read_bytes())
    problem = f"no file {name}" if folder.is_dir() else "no such folder"
    raise FileNotFoundError(
        f"datasets.mnist: path is {str(folder)!r}: {problem}, expected {' or '.join(names)}"
    )


def _unzipped(file: str, raw: bytes, most: int = -1) -> bytes:
    """Return the content of a file, unzipped if it is gzipped, whatever its name."""
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
            return stream.read(most)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"datasets.mnist: {file} is damaged, expected a gzip file ({error})") from None


def _idx(file: str, content: bytes, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the elements of an IDX file of bytes: magic number, sizes of the axes (big-endian), elements."""
    start = 4 * (2 + len(shape))
    if len(content) < start:
        raise ValueError(f"datasets.mnist: {file} has {len(content)} bytes, expected a header of {start}")
    magic, count, *size = map(int, np.frombuffer(content[:start], ">u4"))
    if magic != 0x801 + len(shape):  # bytes, of this many axes
        raise ValueError(
            f"datasets.mnist: {file} begins with the magic number {magic}, expected {0x801 + len(shape)}"
        )
    if tuple(size) != shape:
        raise ValueError(f"datasets.mnist: {file} has images of shape {tuple(size)}, expected {shape}")
    expected = start + count * math.prod(shape)
    if len(content) != expected:
        raise ValueError(
            f"datasets.mnist: {file} has {len(content)} bytes, expected {expected} for the {count} items "
            "that its header announces"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(count, *shape)


def _split(images: tuple[str, bytes], labels: tuple[str, bytes]) -> Split:
    """Return the images and labels of two files."""
    pixels, y = _idx(*images, (28, 28)), _idx(*labels, ())
    if len(pixels) != len(y):
        raise ValueError(
            f"datasets.mnist: {images[0]} has {len(pixels)} images and {labels[0]} {len(y)} labels, "
            "expected one label an image"
        )
    if y.size and y.max() > 9:
        raise ValueError(f"datasets.mnist: {labels[0]} has a label {y.max()}, expected 0 to 9")
    return Tensor(pixels / np.float32(255), None), tensor(y.astype(np.int32))


# ---- downloads
def _unusable(folder: Path | None, error: OSError) -> OSError:
    return OSError(
        f"datasets.mnist: can not keep downloads in {folder or 'a cache folder'} ({error}). Set "
        "TREEPIE_DATA_DIR to a writable folder, or pass path, a folder with the files"
    )


def _cache_folder() -> Path:
    """Create and return the folder of downloaded files."""
    folder = None
    try:
        folder = (Path(config.DATA_DIR) if config.DATA_DIR else cache.user_folder() / "datasets") / "mnist"
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from error
    return folder


def _cached(folder: Path, name: str) -> bytes:
    """Return the content of a file of MNIST, downloaded unless the folder has an undamaged copy."""
    path = folder / f"{name}.gz"
    with contextlib.suppress(OSError, ValueError):  # missing or damaged
        return _checked(name, _unzipped(str(path), path.read_bytes(), _LARGEST))
    print(f"treepie: downloading {name}.gz into {folder} ...", file=sys.stderr, flush=True)
    raw, content = _downloaded(name)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}")  # a reader sees the whole file or none
    try:
        part.write_bytes(raw)
        os.replace(part, path)
    except OSError as error:
        raise _unusable(folder, error) from error
    finally:
        part.unlink(missing_ok=True)
    return content


def _checked(name: str, content: bytes) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    if digest != _MNIST[name]:
        raise ValueError(f"the unzipped content has SHA-256 {digest}, expected {_MNIST[name]}")
    return content


def _downloaded(name: str) -> tuple[bytes, bytes]:
    """Return a file of MNIST, zipped and unzipped, from the first mirror with an undamaged copy."""
    # Imported here, because `import treepie` needs neither HTTP nor TLS.
    from http.client import HTTPException
    from urllib.request import urlopen

    failures = []
    for mirror in _MIRRORS:
        url = f"{mirror}{name}.gz"
        try:
            with urlopen(url, timeout=_PATIENCE) as response:
                raw = response.read(_LARGEST)
            return raw, _checked(name, _unzipped("the answer", raw, _LARGEST))
        except (OSError, HTTPException, ValueError) as error:
            failures.append(f"\n  {url}: {error or type(error).__name__}")
    raise OSError(
        f"datasets.mnist: no mirror has {name}.gz:{''.join(failures)}\n"
        "Pass path, a folder with the files, to do without a download"
    )
