"""Fashion-MNIST and CIFAR-10: small files in the original formats, in folders and on a mirror."""

import dataclasses
import gzip
import hashlib
import io
import tarfile

import numpy as np
import pytest

import treepie as tp
from treepie import datasets
from treepie.kernels import config

from .test_datasets import CONTENTS, IMAGE_FILE, check, idx, uri, write

RNG = np.random.default_rng(1)
ARCHIVE = "cifar-10-binary.tar.gz"
TRAIN = [f"data_batch_{k}.bin" for k in range(1, 6)]
LABELS = {name: RNG.integers(0, 10, k + 1) for k, name in enumerate([*TRAIN, "test_batch.bin"])}
PIXELS = {name: RNG.integers(0, 256, (len(y), 3, 32, 32)) for name, y in LABELS.items()}


def records(labels, pixels):
    """The binary version: a byte of the label, then those of red, green and blue, row by row."""
    return b"".join(
        bytes([label]) + image.astype("u1").tobytes() for label, image in zip(labels, pixels, strict=True)
    )


BATCHES = {name: records(LABELS[name], PIXELS[name]) for name in LABELS}


def archive(batches, folder="cifar-10-batches-bin"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in {"batches.meta.txt": b"airplane\n", **batches}.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def check_cifar(result):
    for names, (x, y) in zip((TRAIN, ["test_batch.bin"]), result, strict=True):
        assert (x.dtype, y.dtype) == (tp.float32, tp.int32)
        pixels = np.concatenate([PIXELS[n] for n in names])
        np.testing.assert_array_equal(x, (pixels / 255).astype(np.float32))
        np.testing.assert_array_equal(y, np.concatenate([LABELS[n] for n in names]))


def mirrored(monkeypatch, tmp_path, name, files):
    """Let a data set come from a folder with these files."""
    mirror = tmp_path / "mirror"
    mirror.mkdir(exist_ok=True)
    for file, raw in files.items():
        (mirror / file).write_bytes(raw)
    digests = {file: hashlib.sha256(raw).hexdigest() for file, raw in files.items()}
    source = dataclasses.replace(getattr(datasets, name), mirrors=(uri(mirror),), digests=digests)
    monkeypatch.setattr(datasets, name, source)
    monkeypatch.setattr(config, "DATA_DIR", str(tmp_path / "data"))
    return mirror


def test_fashion_mnist(tmp_path, monkeypatch, capfd):
    files = {f"{name}.gz": gzip.compress(content) for name, content in CONTENTS.items()}
    mirror = mirrored(monkeypatch, tmp_path, "_FASHION_MNIST", files)
    check(tp.datasets.fashion_mnist())
    for file in mirror.iterdir():
        file.unlink()
    check(tp.datasets.fashion_mnist())
    assert capfd.readouterr().err.count("treepie: downloading") == 4
    check(tp.datasets.fashion_mnist(write(tmp_path / "own", "{}")))


def test_the_checksum_is_that_of_the_file(tmp_path, monkeypatch):
    """The same content, compressed differently, is another file."""
    files = {f"{name}.gz": gzip.compress(content) for name, content in CONTENTS.items()}
    mirror = mirrored(monkeypatch, tmp_path, "_FASHION_MNIST", files)
    (mirror / f"{IMAGE_FILE}.gz").write_bytes(gzip.compress(CONTENTS[IMAGE_FILE], 1, mtime=1))
    folder = tmp_path / "data" / "fashion_mnist"
    with pytest.raises(OSError, match=f"^datasets.fashion_mnist: no mirror has {IMAGE_FILE}.gz") as error:
        tp.datasets.fashion_mnist()
    assert "the file has SHA-256" in str(error.value)
    assert f"put {IMAGE_FILE}.gz into {folder}, or pass path" in str(error.value)
    (folder / f"{IMAGE_FILE}.gz").write_bytes(files[f"{IMAGE_FILE}.gz"])  # by hand
    check(tp.datasets.fashion_mnist())


def test_errors_name_the_function(tmp_path):
    folder = write(tmp_path, "{}", {IMAGE_FILE: idx(np.zeros(20))})
    with pytest.raises(ValueError, match=r"^datasets.fashion_mnist: .* begins with the magic number 2049"):
        tp.datasets.fashion_mnist(folder)
    with pytest.raises(FileNotFoundError, match=r"^datasets.fashion_mnist: path is .*no such folder"):
        tp.datasets.fashion_mnist(tmp_path / "none")
    with pytest.raises(
        FileNotFoundError, match=f"^datasets.cifar10: path .*no file data_batch_1.bin.*{ARCHIVE}"
    ):
        tp.datasets.cifar10(folder)


def test_cifar10_from_a_folder(tmp_path, monkeypatch):
    for name, content in BATCHES.items():
        (tmp_path / name).write_bytes(content)
    check_cifar(tp.datasets.cifar10(tmp_path))
    inner = tmp_path / "outer" / "cifar-10-batches-bin"
    inner.mkdir(parents=True)
    for name in BATCHES:
        (tmp_path / name).rename(inner / name)
    check_cifar(tp.datasets.cifar10(str(tmp_path / "outer")))
    (tmp_path / ARCHIVE).write_bytes(archive(BATCHES))
    check_cifar(tp.datasets.cifar10(tmp_path))
    check_cifar(tp.datasets.cifar10(tmp_path / ARCHIVE))
    monkeypatch.setenv("HOME", str(tmp_path))
    check_cifar(tp.datasets.cifar10("~"))


def test_cifar10_is_downloaded_once(tmp_path, monkeypatch, capfd):
    mirror = mirrored(monkeypatch, tmp_path, "_CIFAR10", {ARCHIVE: archive(BATCHES)})
    check_cifar(tp.datasets.cifar10())
    (mirror / ARCHIVE).unlink()
    check_cifar(tp.datasets.cifar10())
    assert capfd.readouterr().err.count("treepie: downloading") == 1
    (tmp_path / "data" / "cifar10" / ARCHIVE).write_bytes(b"damaged")
    with pytest.raises(OSError, match=f"no mirror has {ARCHIVE}"):
        tp.datasets.cifar10()


#: Case -> the file that is damaged, its content, and the message.
DAMAGED = {
    "short": (
        "data_batch_2.bin",
        BATCHES["data_batch_2.bin"][:-1],
        "6145 bytes, expected a multiple of",
    ),
    "empty": ("test_batch.bin", b"", "has 0 bytes"),
    "a label": ("data_batch_5.bin", records([10], PIXELS["data_batch_1.bin"]), "has a label 10, expected 0"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_batches_are_named(case, tmp_path):
    name, content, message = DAMAGED[case]
    (tmp_path / ARCHIVE).write_bytes(archive({**BATCHES, name: content}))
    with pytest.raises(ValueError, match=f"^datasets.cifar10: {name} in .*{message}"):
        tp.datasets.cifar10(tmp_path)


@pytest.mark.parametrize(
    "raw",
    [
        archive({}),
        archive(BATCHES, "elsewhere"),
        archive(BATCHES)[:-200],
        gzip.compress(b"no archive"),
        b"<html>",
    ],
)
def test_a_damaged_archive_is_named(raw, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(raw)
    with pytest.raises(ValueError, match=f"^datasets.cifar10: .*{ARCHIVE} is damaged, expected"):
        tp.datasets.cifar10(tmp_path)
