"""Shared options and fixtures."""

import pytest

from treepie.kernels import threads


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, default=200, help="how many random programs the fuzzer runs")


@pytest.fixture(autouse=True)
def same_threads():
    """Fail a test that leaves another number of threads behind."""
    before = threads.get_num_threads()
    yield
    assert threads.get_num_threads() == before
