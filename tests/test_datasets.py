"""MNIST from folders and mirrors, small and generated; the whole of it where there is a copy."""

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import http.server
import struct
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import treepie as tp
from treepie import datasets
from treepie.data.downloads import Source
from treepie.kernels import config

RNG = np.random.default_rng(0)
SHARED = Path(__file__).parents[2] / "shared" / "data" / "mnist"
LABELS = {"train": RNG.integers(0, 10, 7), "t10k": RNG.integers(0, 10, 3)}
IMAGES = {part: RNG.integers(0, 256, (len(y), 28, 28)) for part, y in LABELS.items()}


def idx(array):
    array = np.asarray(array)
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


CONTENTS = {f"{part}-images-idx3-ubyte": idx(x) for part, x in IMAGES.items()}
CONTENTS |= {f"{part}-labels-idx1-ubyte": idx(y) for part, y in LABELS.items()}


def write(folder, form="{}.gz", contents=None):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {**CONTENTS, **(contents or {})}.items():
        file = folder / form.format(name)
        file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return folder


def check(result):
    for part, (x, y) in zip(("train", "t10k"), result, strict=True):
        assert (x.dtype, y.dtype) == (tp.float32, tp.int32)
        np.testing.assert_array_equal(x, (IMAGES[part] / 255).astype(np.float32))
        np.testing.assert_array_equal(y, LABELS[part])


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Make the small files the ones that mirrors have to give; return the cache folder."""
    digests = {f"{name}.gz": hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}
    change(monkeypatch, digests=digests)
    monkeypatch.setattr(config, "DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "data" / "mnist"


def change(monkeypatch, **values):
    """Change where MNIST comes from."""
    monkeypatch.setattr(datasets, "_MNIST", dataclasses.replace(datasets._MNIST, **values))


def mirrors(monkeypatch, *urls):
    change(monkeypatch, mirrors=urls)


def uri(folder):
    return folder.as_uri() + "/"


@contextlib.contextmanager
def served(folder):
    """Serve a folder over HTTP; give its address and the list of paths asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", asked
        finally:
            server.shutdown()
            thread.join()


def test_digits():
    (x, y), (x_test, y_test) = tp.datasets.digits()
    assert (x.shape, x_test.shape, y.shape, y_test.shape) == ((1437, 64), (360, 64), (1437,), (360,))
    assert (x.dtype, y.dtype) == (tp.float32, tp.int32)
    assert (x.numpy().min(), x.numpy().max()) == (0, 1)
    assert set(y.tolist()) == set(range(10))


# ---- a user's folder
@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("form", ["{}", "{}.gz"])
def test_a_folder_of_files(form, dotted, tmp_path, monkeypatch):
    mirrors(monkeypatch)  # never asked
    folder = write(tmp_path / "files", form)
    for file in list(folder.iterdir()) if dotted else []:
        file.rename(file.with_name(file.name.replace("-idx", ".idx")))
    assert len(list(folder.iterdir())) == 4
    check(tp.datasets.mnist(folder))
    check(tp.datasets.mnist(str(folder)))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    check(tp.datasets.mnist("~/files"))


def test_a_gz_that_a_browser_has_unzipped(tmp_path):
    folder = write(tmp_path)
    for name, content in CONTENTS.items():
        (folder / f"{name}.gz").write_bytes(content)
    check(tp.datasets.mnist(folder))


@pytest.mark.skipif(not SHARED.is_dir(), reason="there is no copy of MNIST here")
def test_the_real_files():
    """Counts and mean as published; the checksums are those of these files."""
    (x, y), (x_test, y_test) = tp.datasets.mnist(SHARED)
    assert (x.shape, y.shape) == ((60000, 28, 28), (60000,))
    assert (x_test.shape, y_test.shape) == ((10000, 28, 28), (10000,))
    assert (x.numpy().min(), x.numpy().max()) == (0, 1)
    assert round(float(x.numpy().mean(dtype=np.float64)), 4) == 0.1307
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(y.numpy()).tolist() == counts
    known = {  # MD5 of the unzipped files, published in many places
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
    for name, md5 in known.items():
        raw = (SHARED / f"{name}.gz").read_bytes()
        assert hashlib.md5(gzip.decompress(raw)).hexdigest() == md5
        assert datasets._MNIST.verified(f"{name}.gz", "the file", raw) == gzip.decompress(raw)


IMAGE_FILE, LABEL_FILE = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
DAMAGED = {
    "labels for images": (IMAGE_FILE, idx(np.zeros(20)), "begins with the magic number 2049, expected 2051"),
    "images for labels": (
        LABEL_FILE,
        idx(IMAGES["t10k"]),
        "begins with the magic number 2051, expected 2049",
    ),
    "a web page": (IMAGE_FILE, b"<!DOCTYPE html><html>", "begins with the magic number 1008813135, expected"),
    "empty": (LABEL_FILE, b"", "has 0 bytes, expected a header of 8"),
    "cut in the header": (IMAGE_FILE, idx(IMAGES["train"])[:13], "has 13 bytes, expected a header of 16"),
    "cut off": (
        IMAGE_FILE,
        idx(IMAGES["train"])[:-1],
        "has 5503 bytes, expected 5504 for the 7 items that its header announces",
    ),
    "too long": (LABEL_FILE, idx(LABELS["t10k"]) + b"\0", "has 12 bytes, expected 11 for the 3 items"),
    "another size": (
        IMAGE_FILE,
        idx(np.zeros((7, 8, 8))),
        r"has images of shape \(8, 8\), expected \(28, 28\)",
    ),
    "no digits": (LABEL_FILE, idx([1, 2, 10]), "has a label 10, expected 0 to 9"),
    "too few labels": (LABEL_FILE, idx([1, 2]), "2 labels, expected one label an image"),
}


@pytest.mark.parametrize("form", ["{}", "{}.gz"])
@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named(case, form, tmp_path):
    name, content, message = DAMAGED[case]
    write(tmp_path, form, {name: content})
    with pytest.raises(ValueError, match=f"^datasets.mnist: .*{form.format(name)} .*{message}"):
        tp.datasets.mnist(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-12], lambda b: b[:15] + b"\xff" * 9 + b[24:], lambda b: b[:5]]
)
def test_a_damaged_gzip_file_is_named(damage, tmp_path):
    file = write(tmp_path) / f"{IMAGE_FILE}.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=rf"^datasets.mnist: .*{IMAGE_FILE}.gz is damaged, expected a gzip"):
        tp.datasets.mnist(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"datasets.mnist: path is '.*none': no such folder, expected"
    ):
        tp.datasets.mnist(tmp_path / "none")
    (write(tmp_path) / f"{LABEL_FILE}.gz").unlink()
    names = r"t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz or t10k-labels.idx1-ubyte or"
    with pytest.raises(FileNotFoundError, match=rf"no file {LABEL_FILE}, expected {names}"):
        tp.datasets.mnist(tmp_path)


# ---- downloads
def test_files_are_downloaded_once(cached, tmp_path, monkeypatch, capfd):
    with served(write(tmp_path / "mirror")) as (url, asked):
        mirrors(monkeypatch, url)
        check(tp.datasets.mnist())
        assert sum("404" not in path for path in asked) == 4
        check(tp.datasets.mnist())
        assert len(asked) == 4
    check(tp.datasets.mnist())  # without the mirror
    assert sorted(f.name for f in cached.iterdir()) == sorted(f"{name}.gz" for name in CONTENTS)
    assert capfd.readouterr().err.count("treepie: downloading") == 4


def test_each_mirror_is_tried_in_turn(cached, tmp_path, monkeypatch):
    wrong = write(tmp_path / "wrong", contents={LABEL_FILE: idx([1, 2, 3])})
    (write(tmp_path / "cut") / f"{IMAGE_FILE}.gz").write_bytes(b"\x1f\x8b\x08")
    with served(tmp_path / "nothing") as (url, asked):
        good = write(tmp_path / "good")
        mirrors(monkeypatch, url, uri(tmp_path / "cut"), uri(wrong), uri(good))
        check(tp.datasets.mnist())
        assert len(asked) >= 4
    assert gzip.decompress((cached / f"{LABEL_FILE}.gz").read_bytes()) == CONTENTS[LABEL_FILE]


def test_where_no_mirror_has_the_files_all_are_listed(cached, tmp_path, monkeypatch):
    page = write(tmp_path / "page", contents=dict.fromkeys(CONTENTS, b"<html>"))
    cut = write(tmp_path / "cut")
    for file in cut.iterdir():
        file.write_bytes(file.read_bytes()[:20])
    closed = "http://127.0.0.1:9/"  # the port of `discard`, where nothing listens
    with served(tmp_path / "nothing") as (url, _):
        mirrors(monkeypatch, url, closed, uri(tmp_path / "none"), uri(page), uri(cut))
        with pytest.raises(OSError, match=rf"^datasets.mnist: no mirror has {IMAGE_FILE}.gz:\n") as error:
            tp.datasets.mnist()
    _, *said, last = str(error.value).split("\n")
    assert last == (
        f"Without a network, put {IMAGE_FILE}.gz into {cached}, or pass path, a folder with the files"
    )
    for line, start, reason in zip(
        said,
        datasets._MNIST.mirrors,
        ["404", "refused", "No such file", "has SHA-256", "is damaged"],
        strict=True,
    ):
        assert line.startswith(f"  {start}{IMAGE_FILE}.gz: ")
        assert reason in line
    assert list(cached.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"", lambda b: gzip.compress(b"another")])
def test_a_damaged_file_in_the_cache_is_downloaded_again(damage, cached, tmp_path, monkeypatch, capfd):
    mirrors(monkeypatch, uri(write(tmp_path / "mirror")))
    file = write(cached) / f"{IMAGE_FILE}.gz"
    file.write_bytes(damage(file.read_bytes()))
    check(tp.datasets.mnist())
    assert gzip.decompress(file.read_bytes()) == CONTENTS[IMAGE_FILE]
    assert capfd.readouterr().err == f"treepie: downloading {IMAGE_FILE}.gz into {cached} ...\n"


def test_an_interrupted_download_leaves_no_file(cached, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    mirrors(monkeypatch, uri(write(tmp_path / "mirror")))
    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tp.datasets.mnist()
    assert list(cached.iterdir()) == []


def test_a_mirror_never_fills_the_memory(cached, tmp_path, monkeypatch):
    mirrors(monkeypatch, uri(write(tmp_path / "bomb", contents={IMAGE_FILE: bytes(10**6)})))
    change(monkeypatch, largest=10**5)
    seen = []
    monkeypatch.setattr(Source, "_check", lambda self, what, expected, content: seen.append(len(content)))
    with pytest.raises(ValueError, match="magic number 0"):
        tp.datasets.mnist()
    assert max(seen) == 10**5


def test_a_folder_that_can_not_be_used(cached, tmp_path, monkeypatch):
    (tmp_path / "data").write_text("a file in the way")
    with pytest.raises(OSError, match=r"can not keep downloads in .*mnist .*Set TREEPIE_DATA_DIR to a"):
        tp.datasets.mnist()
    monkeypatch.setattr(config, "DATA_DIR", str(tmp_path / "other"))
    mirrors(monkeypatch, uri(write(tmp_path / "mirror")))
    monkeypatch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match=r"can not keep downloads in .*mnist \(the disk is full\)"):
        tp.datasets.mnist()


def test_the_users_cache_folder_is_the_default(cached, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "DATA_DIR", None)
    monkeypatch.setattr("treepie.kernels.cache.user_folder", lambda: tmp_path / "treepie")
    mirrors(monkeypatch, uri(write(tmp_path / "mirror")))
    check(tp.datasets.mnist())
    assert len(list((tmp_path / "treepie" / "datasets" / "mnist").iterdir())) == 4


@pytest.mark.parametrize("source", [datasets._MNIST, datasets._FASHION_MNIST, datasets._CIFAR10])
def test_mirrors_are_web_addresses(source):
    for mirror in source.mirrors:
        assert mirror.startswith("https://")
        assert mirror.endswith("/")
        assert urllib.request.Request(mirror).host
    assert all(len(bytes.fromhex(digest)) == 32 for digest in source.digests.values())
