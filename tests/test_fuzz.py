"""The differential fuzzer: `pytest tests/test_fuzz.py --fuzz 10000` runs more than the usual 200."""

import pytest

from . import fuzz

CHUNK = 50


def pytest_generate_tests(metafunc):
    if "first" in metafunc.fixturenames:
        count = metafunc.config.getoption("fuzz")
        metafunc.parametrize("first", range(0, count, CHUNK))


def test_random_programs_give_numpys_values_and_gradients(first, request):
    count = request.config.getoption("fuzz")
    smooth = total = 0
    for seed in range(first, min(first + CHUNK, count)):
        program = fuzz.make(seed)
        fuzz.check_values(program)
        smooth += fuzz.check_gradient(program)
        total += 1
    # A kink makes differences useless; that few programs sit on one keeps the check worth its name.
    assert smooth >= 0.7 * total


def test_the_fuzzer_finds_a_wrong_gradient(monkeypatch):
    """With tanh's rule off by a thousandth, some program fails."""
    from treepie.autodiff import OPS

    row = OPS["tanh"]
    object.__setattr__(row, "vjp", (lambda g, y, x: g * (1 - y * y) * 1.001,))
    row.__dict__.pop("_fused", None)
    try:
        with pytest.raises(AssertionError, match="tanh"):
            for seed in range(400):
                fuzz.check_gradient(fuzz.make(seed))
    finally:
        object.__setattr__(row, "vjp", (lambda g, y, x: g * (1 - y * y),))
        row.__dict__.pop("_fused", None)
