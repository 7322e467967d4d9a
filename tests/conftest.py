"""Shared fixtures: a compiled function is a cost, so tests share one kernel cache with the user."""

import pytest

from treepie.kernels import threads


@pytest.fixture(autouse=True)
def same_threads():
    """Fail a test that leaves another number of threads behind."""
    before = threads.get_num_threads()
    yield
    assert threads.get_num_threads() == before
