"""Shared options and fixtures."""

import shutil
import tempfile
from pathlib import Path

import pytest

from treepie.kernels import cache, config, native, threads


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, default=200, help="how many random programs the fuzzer runs")


@pytest.fixture(autouse=True)
def same_threads():
    """Fail a test that leaves another number of threads behind."""
    before = threads.get_num_threads()
    yield
    assert threads.get_num_threads() == before


@pytest.fixture
def move_cache(monkeypatch):
    """Move the cache of this process to another folder, as a new process there would find it."""

    def moved(root):
        cache.move(root if root is None else str(root))
        for function in (cache._warn, cache._remove_leftovers):
            function.cache_clear()
        monkeypatch.setattr(native, "_addresses", dict(native._addresses))

    before = config.CACHE_DIR
    yield moved
    moved(before)


@pytest.fixture
def public_folder():
    """A folder that other users can read; pytest's own are private."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)
