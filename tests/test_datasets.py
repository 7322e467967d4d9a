"""MNIST: IDX files of every kind, mirrors that fail, what is kept, and damaged files."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest

import treepie as tp
from treepie import datasets

REAL = Path(__file__).parents[2] / "shared" / "data" / "mnist"
RNG = np.random.default_rng(0)


def idx(array):
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


CONTENT = {
    name: idx(RNG.integers(0, 10, (n, 28, 28) if "images" in name else (n,)).astype(np.uint8))
    for name, n in zip(datasets._MNIST, (6, 6, 2, 2), strict=True)
}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A cache folder, and files of 6 and 2 images that pass for MNIST."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    monkeypatch.setattr(datasets, "_MNIST", digests)
    monkeypatch.setattr("treepie.kernels.config.CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "MIRRORS", [mirror(tmp_path / "mirror")])
    return tmp_path


def mirror(folder, change=lambda content: content):
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / f"{name}.gz").write_bytes(change(gzip.compress(content)))
    return folder.as_uri() + "/"


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dotted", [True, False])
def test_a_folder_of_files(tmp_path, packed, dotted):
    for name, content in CONTENT.items():
        path = tmp_path / (name.replace("-idx", ".idx") if dotted else name)
        path = path.with_name(path.name + ".gz") if packed else path
        path.write_bytes(gzip.compress(content) if packed else content)
    (x, y), (x_test, y_test) = tp.datasets.mnist(tmp_path)
    assert (x.shape, y.shape, x_test.shape, y_test.shape) == ((6, 28, 28), (6,), (2, 28, 28), (2,))
    assert (x.dtype, y.dtype) == (tp.float32, tp.int32)
    want = np.frombuffer(CONTENT["train-images-idx3-ubyte"][16:], np.uint8) / 255
    np.testing.assert_allclose(x.numpy().ravel(), want, rtol=1e-7)


def test_downloads_are_kept(small, monkeypatch, capfd):
    first = tp.datasets.mnist()
    assert capfd.readouterr().err.count("treepie: downloading file:") == 4
    monkeypatch.setattr(datasets, "MIRRORS", [])
    again = tp.datasets.mnist()
    assert capfd.readouterr().err == ""
    np.testing.assert_array_equal(first[0][0], again[0][0])
    assert len(list((small / "cache" / "datasets" / "mnist").iterdir())) == 4


def test_mirrors_are_tried_in_turn(small, monkeypatch):
    good = datasets.MIRRORS[0]
    cut = mirror(small / "cut", lambda content: content[:-9])
    other = mirror(small / "other", lambda content: gzip.compress(b"not MNIST"))
    missing = (small / "missing").as_uri() + "/"
    monkeypatch.setattr(datasets, "MIRRORS", [missing, cut, other, good])
    assert tp.datasets.mnist()[0][1].shape == (6,)
    damaged = small / "cache" / "datasets" / "mnist" / "t10k-labels-idx1-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert tp.datasets.mnist()[1][1].shape == (2,)  # downloaded again
    damaged.unlink()
    monkeypatch.setattr(datasets, "MIRRORS", [missing, other])
    with pytest.raises(
        ConnectionError, match=r"t10k-labels-idx1-ubyte could not be.*No such file.*another checks"
    ):
        tp.datasets.mnist()


DAMAGE = [
    (lambda c: c[:-1], ValueError, "has 13 bytes, expected 14 for"),
    (lambda c: b"PK" + c[2:], ValueError, "begins with b'PK.*, expected IDX of 1 axes"),
    (lambda c: gzip.compress(c)[:-6], ValueError, "is damaged"),
    (lambda c: idx(np.zeros(5, np.uint8)), ValueError, "has 6 images for 5 labels"),
]


@pytest.mark.parametrize(("change", "error", "text"), DAMAGE)
def test_damaged_files_are_named(tmp_path, change, error, text):
    for name, content in CONTENT.items():
        damaged = name == "train-labels-idx1-ubyte"
        (tmp_path / name).write_bytes(change(content) if damaged else content)
    with pytest.raises(error, match=r"datasets.mnist: .*train-\w+-idx\d-ubyte " + text):
        tp.datasets.mnist(tmp_path)


def test_a_folder_without_the_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no train-images-idx3-ubyte, expected one of the files"):
        tp.datasets.mnist(tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="MNIST is not here")
def test_mnist_itself(small, monkeypatch):
    (x, y), (x_test, y_test) = tp.datasets.mnist(REAL)
    assert (x.shape, x_test.shape) == ((60000, 28, 28), (10000, 28, 28))
    assert np.bincount(y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert x.mean().item() == pytest.approx(0.1307, abs=1e-4)
    monkeypatch.undo()
    for name, digest in datasets._MNIST.items():
        content = gzip.decompress((REAL / f"{name}.gz").read_bytes())
        assert hashlib.sha256(content).hexdigest() == digest
