"""The edits of `tests/mutants.py` fit the code of today, and samples of them are the date's."""

import datetime

import pytest

from . import mutants
from .edits import ALL
from .edits.edit import Edit


@pytest.mark.parametrize("edit", ALL, ids=lambda e: e.name)
def test_an_edit_fits_the_code(edit):
    assert mutants.problems([edit]) == []


def test_names_are_unique():
    assert len({e.name for e in ALL}) == len(ALL)


def test_equivalent_edits_have_a_reason():
    """Which says more than that they are."""
    assert all(len(e.equivalent.split()) > 5 for e in ALL if e.equivalent)


def test_an_edit_that_does_not_fit_is_named():
    wrong = Edit("some-edit", "api/loss.py", "no such text", "", "nothing", "tests/test_nothing.py")
    missing, tests = mutants.problems([wrong])
    assert missing == "some-edit: its text occurs 0 times in api/loss.py, expected once"
    assert tests.startswith("some-edit: tests are 'tests/test_nothing.py', expected files")
    twice = Edit("twice", "api/loss.py", "return", "", "all", "tests/test_loss.py")
    assert "occurs" in mutants.problems([twice])[0]
    assert mutants.problems([twice, twice])[0] == "twice: the name of 2 edits"


def test_a_sample_is_that_of_its_date():
    day = datetime.date(2026, 11, 26)
    first, again = (mutants.sample(ALL, 10, day) for _ in range(2))
    assert first == again
    assert first != mutants.sample(ALL, 10, day + datetime.timedelta(1))
    assert len({e.name for e in first}) == 10
    assert not any(e.equivalent for e in first)
