"""Data sets: one included in the package, others downloaded, and CSV files."""

from __future__ import annotations

import io
import math
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff import Tensor, tensor

from .downloads import Source
from .table import Table as Table, load_csv as load_csv

__all__ = ["Table", "cifar10", "digits", "fashion_mnist", "load_csv", "mnist"]


def __dir__() -> list[str]:
    return __all__


Split = tuple[Tensor, Tensor]

_MNIST = Source(
    "mnist",
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    {
        "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    of_content=True,
)

_FASHION_MNIST = Source(
    "fashion_mnist",
    (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    ),
    {
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
)

_CIFAR10 = Source(
    "cifar10",
    (
        "https://www.cs.toronto.edu/~kriz/",
        "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/",
    ),
    {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
    largest=2**28,
)

#: The files in CIFAR-10's archive, all of one format.
_CIFAR10_TRAIN = tuple(f"data_batch_{k}.bin" for k in range(1, 6))
_CIFAR10_TEST = "test_batch.bin"


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
    return _mnist_like(_MNIST, path)


def fashion_mnist(path: str | os.PathLike[str] | None = None) -> tuple[Split, Split]:
    """Return pictures of clothing, 28 by 28 pixels: ((x_train, y_train), (x_test, y_test)).

    x: (60000, 28, 28) and (10000, 28, 28) float32 in [0, 1], 188 and 31 MB.  y: int32 in 0..9: T-shirt,
        trousers, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot.
    path: a folder with files of MNIST's names and format. None downloads them (31 MB) into the folder
        `fashion_mnist`; see `mnist`.

    Raises FileNotFoundError for a missing file, ValueError for a damaged one, OSError if no mirror has them.

    Source: Xiao, Rasul & Vollgraf 2017, "Fashion-MNIST: a novel image dataset for benchmarking machine
    learning algorithms", MIT licence.

    >>> import treepie as tp
    >>> (x_train, y_train), (x_test, y_test) = tp.datasets.fashion_mnist("data/fashion")  # doctest: +SKIP
    """
    return _mnist_like(_FASHION_MNIST, path)


def cifar10(path: str | os.PathLike[str] | None = None) -> tuple[Split, Split]:
    """Return color photographs, 32 by 32 pixels: ((x_train, y_train), (x_test, y_test)).

    x: (50000, 3, 32, 32) and (10000, 3, 32, 32) float32 in [0, 1], 614 and 123 MB.  y: int32 in 0..9:
        airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck.
    path: the archive `cifar-10-binary.tar.gz`, a folder with it, or one with its files `data_batch_1.bin` to
        `data_batch_5.bin` and `test_batch.bin`. None downloads the archive (170 MB) into the folder
        `cifar10`; see `mnist`.

    Raises FileNotFoundError for a missing file, ValueError for a damaged one, OSError if no mirror has it.

    Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images".

    >>> import treepie as tp
    >>> (x_train, y_train), (x_test, y_test) = tp.datasets.cifar10("data/cifar10")  # doctest: +SKIP
    """
    (archive,) = _CIFAR10.digests
    if path is None:
        contents = _unpacked(str(_CIFAR10.folder() / archive), _CIFAR10.cached(archive))
    else:
        folder = Path(path).expanduser()
        whole = folder if folder.is_file() else folder / archive
        if whole.is_file():
            contents = _unpacked(str(whole), _CIFAR10.unzipped(str(whole), whole.read_bytes()))
        else:
            names = (*_CIFAR10_TRAIN, _CIFAR10_TEST)
            contents = {n: _CIFAR10.found(folder, [n, f"cifar-10-batches-bin/{n}", archive]) for n in names}
    return _cifar_split([contents[n] for n in _CIFAR10_TRAIN]), _cifar_split([contents[_CIFAR10_TEST]])


# ---- the format of MNIST
def _mnist_like(source: Source, path: str | os.PathLike[str] | None) -> tuple[Split, Split]:
    """Return a data set of four IDX files, downloaded or in a folder."""
    contents = {}
    for file in source.digests:
        name = file.removesuffix(".gz")
        if path is None:
            contents[name] = str(source.folder() / file), source.cached(file)
        else:
            names = [f"{n}{end}" for n in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
            contents[name] = source.found(Path(path).expanduser(), names)
    train, test = (
        _split(source.function, contents[f"{part}-images-idx3-ubyte"], contents[f"{part}-labels-idx1-ubyte"])
        for part in ("train", "t10k")
    )
    return train, test


def _idx(function: str, file: str, content: bytes, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the elements of an IDX file of bytes: magic number, sizes of the axes (big-endian), elements."""
    start = 4 * (2 + len(shape))
    if len(content) < start:
        raise ValueError(f"{function}: {file} has {len(content)} bytes, expected a header of {start}")
    magic, count, *size = map(int, np.frombuffer(content[:start], ">u4"))
    if magic != 0x801 + len(shape):  # bytes, of this many axes
        raise ValueError(
            f"{function}: {file} begins with the magic number {magic}, expected {0x801 + len(shape)}"
        )
    if tuple(size) != shape:
        raise ValueError(f"{function}: {file} has images of shape {tuple(size)}, expected {shape}")
    expected = start + count * math.prod(shape)
    if len(content) != expected:
        raise ValueError(
            f"{function}: {file} has {len(content)} bytes, expected {expected} for the {count} items "
            "that its header announces"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(count, *shape)


def _split(function: str, images: tuple[str, bytes], labels: tuple[str, bytes]) -> Split:
    """Return the images and labels of two files."""
    pixels, y = _idx(function, *images, (28, 28)), _idx(function, *labels, ())
    if len(pixels) != len(y):
        raise ValueError(
            f"{function}: {images[0]} has {len(pixels)} images and {labels[0]} {len(y)} labels, "
            "expected one label an image"
        )
    if y.size and y.max() > 9:
        raise ValueError(f"{function}: {labels[0]} has a label {y.max()}, expected 0 to 9")
    return Tensor(pixels / np.float32(255), None), tensor(y.astype(np.int32))


# ---- the format of CIFAR-10
def _unpacked(archive: str, content: bytes) -> dict[str, tuple[str, bytes]]:
    """Return the files of CIFAR-10 in an unzipped archive: name -> (their path for messages, content)."""
    import tarfile  # here, because `import treepie` does not need it

    contents = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for name in (*_CIFAR10_TRAIN, _CIFAR10_TEST):
                member = tar.extractfile(f"cifar-10-batches-bin/{name}")
                assert member is not None
                contents[name] = f"{name} in {archive}", member.read()
    except (tarfile.TarError, KeyError, AssertionError, EOFError) as error:
        raise ValueError(
            f"datasets.cifar10: {archive} is damaged, expected an archive of data_batch_1.bin to "
            f"data_batch_5.bin and test_batch.bin ({error})"
        ) from None
    return contents


def _cifar_split(batches: list[tuple[str, bytes]]) -> Split:
    """Return the images and labels of files of records: a label, then the bytes of three channels."""
    record = 1 + 3 * 32 * 32
    rows = []
    for file, content in batches:
        if not content or len(content) % record:
            raise ValueError(
                f"datasets.cifar10: {file} has {len(content)} bytes, expected a multiple of {record}"
            )
        rows.append(np.frombuffer(content, np.uint8).reshape(-1, record))
        if rows[-1][:, 0].max() > 9:
            raise ValueError(f"datasets.cifar10: {file} has a label {rows[-1][:, 0].max()}, expected 0 to 9")
    x = np.empty((sum(map(len, rows)), 3, 32, 32), np.float32)
    np.divide(np.concatenate(rows)[:, 1:].reshape(x.shape), np.float32(255), out=x)
    return Tensor(x, None), tensor(np.concatenate([r[:, 0] for r in rows]).astype(np.int32))
