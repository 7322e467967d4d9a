"""Data sets: small ones that come with the package, and MNIST, which is downloaded once and kept."""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import tempfile
import urllib.request
import zlib
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff import Tensor, tensor
from treepie.kernels import cache

Split = tuple[Tensor, Tensor]

#: Where `mnist` downloads from, in this order.
MIRRORS = [
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
]

#: SHA-256 of the unpacked files: mirrors pack the same content differently.
_MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def digits() -> tuple[Split, Split]:
    """Return handwritten digits, 8 by 8 pixels: ((x_train, y_train), (x_test, y_test)).

    x: (1437, 64) and (360, 64) float32 in [0, 1].  y: int32 in 0..9.  Every fifth image, from
    the first on, is a test image; the same thirteen people wrote both parts.

    Source: Optical Recognition of Handwritten Digits, its test part, E. Alpaydin and C. Kaynak,
    1998, UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0.
    """
    with (files(__package__) / "files" / "digits.npz").open("rb") as file, np.load(file) as stored:
        x, y = stored["images"].astype(np.float32) / 16, stored["labels"].astype(np.int32)
    test = np.arange(len(y)) % 5 == 0
    return (tensor(x[~test]), tensor(y[~test])), (tensor(x[test]), tensor(y[test]))


def mnist(path: str | os.PathLike[str] | None = None) -> tuple[Split, Split]:
    """Return MNIST's handwritten digits: ((x_train, y_train), (x_test, y_test)).

    x: (60000, 28, 28) and (10000, 28, 28) float32 in [0, 1].  y: int32 in 0..9.
    path: a folder with the four IDX files, as they are or gzipped. None looks in the user's cache folder
        (`TREEPIE_CACHE_DIR` moves it), and downloads what is not there, 11 MB, with a line on stderr.

    Raises FileNotFoundError for a folder without one of the files, ValueError for a damaged file, and
    ConnectionError where no mirror gives a right one.

    Source: Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database of handwritten digits, 1998.
    """
    folder = cache.user_folder() / "datasets" / "mnist" if path is None else Path(path)
    found = []
    for name, digest in _MNIST.items():
        content, source = _downloaded(folder, name, digest) if path is None else _stored(folder, name)
        found.append((_idx(content, source, 3 if "images" in name else 1), source))
    splits = []
    for (images, source), (labels, _) in (found[:2], found[2:]):
        if len(images) != len(labels):
            raise ValueError(f"datasets.mnist: {source} has {len(images)} images for {len(labels)} labels")
        splits.append((Tensor(images.astype(np.float32) / np.float32(255)), tensor(labels)))
    return splits[0], splits[1]


def _stored(folder: Path, name: str) -> tuple[bytes, Path]:
    """Read a file of a user's folder, under one of the names that it goes by; return its content too."""
    dotted = name.replace("-idx", ".idx")
    names = [name + ".gz", name, dotted + ".gz", dotted]
    for path in (folder / n for n in names):
        if path.is_file():
            return _unpacked(path.read_bytes(), path), path
    raise FileNotFoundError(
        f"datasets.mnist: {folder} has no {name}, expected one of the files {', '.join(names)}"
    )


def _unpacked(content: bytes, source: object) -> bytes:
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"datasets.mnist: {source} is damaged ({error})") from None


def _downloaded(folder: Path, name: str, digest: str) -> tuple[bytes, Path]:
    """Read a file of the cache, downloaded first where it is not there or not what it should be."""
    path, tried = folder / f"{name}.gz", []
    if path.is_file():
        try:
            content = _unpacked(path.read_bytes(), path)
            if hashlib.sha256(content).hexdigest() == digest:
                return content, path
        except ValueError:  # damaged: as good as not there
            pass
    for mirror in MIRRORS:
        print(f"treepie: downloading {mirror}{name}.gz", file=sys.stderr)
        try:
            with urllib.request.urlopen(f"{mirror}{name}.gz", timeout=30) as answer:
                packed = answer.read()
            content = _unpacked(packed, mirror)
        except (OSError, ValueError) as error:
            tried.append(f"{mirror}: {error}")
            continue
        if hashlib.sha256(content).hexdigest() == digest:
            _keep(path, packed)
            return content, path
        tried.append(f"{mirror}: the content has another checksum")
    raise ConnectionError(
        f"datasets.mnist: {name} could not be downloaded ({'; '.join(tried)}); give a folder that has it as "
        "path"
    )


def _keep(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


def _idx(content: bytes, source: Path, rank: int) -> NDArray[np.uint8]:
    """Read an array of bytes in the IDX format: 0, 0, 8, the rank, the sizes in 32 bits, the elements."""
    head = 4 + 4 * rank
    if content[:4] != bytes([0, 0, 8, rank]):
        raise ValueError(f"datasets.mnist: {source} begins with {content[:4]!r}, expected IDX of {rank} axes")
    sizes = tuple(int(n) for n in np.frombuffer(content[4:head], ">u4"))
    if len(sizes) != rank or len(content) != head + int(np.prod(sizes)):
        raise ValueError(
            f"datasets.mnist: {source} has {len(content)} bytes, expected {head + int(np.prod(sizes))} for "
            f"{sizes} elements"
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(sizes)
