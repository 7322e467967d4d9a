"""The fuzzer of changing Python: `pytest tests/test_fuzz_steps.py --fuzz 20000` runs more than usually."""

import re
import sys

import numpy as np
import pytest

import treepie as tp

from . import eager, fuzz_fits, fuzz_steps
from .fuzz_steps import Eager

CHUNK = 20


def pytest_generate_tests(metafunc):
    count = metafunc.config.getoption("fuzz")
    for name, seeds in (("program", max(400, count)), ("fit", max(60, count * 3 // 20))):
        if name in metafunc.fixturenames:
            chunks = [range(k, min(k + CHUNK, seeds)) for k in range(0, seeds, CHUNK)]
            metafunc.parametrize(name, chunks, ids=lambda seeds: str(seeds.start))


def test_programs_whose_python_changes_give_the_bits_of_eager_ones(program):
    for seed in program:
        fuzz_steps.check(fuzz_steps.make(seed))


def test_fits_whose_python_changes_give_the_bits_of_eager_ones(fit):
    for seed in fit:
        fuzz_steps.check(fuzz_fits.make(seed), fuzz_fits.run)


MAKERS = [(fuzz_steps.make, fuzz_steps.run, 30), (fuzz_fits.make, fuzz_fits.run, 20)]


@pytest.mark.parametrize(("make", "run", "count"), MAKERS, ids=["steps", "fits"])
def test_a_seed_is_one_program_that_runs_the_same_each_time(make, run, count):
    for seed in range(count):
        assert str(make(seed)) == str(make(seed))
        assert fuzz_steps.found(make(seed), run, Eager, Eager) is None


def test_few_calls_raise_errors_and_few_values_are_not_finite():
    """Errors and infinities hide differences."""
    calls = errors = lost = 0
    for seed in range(60):
        results = fuzz_steps.run(fuzz_steps.make(seed), Eager)
        calls += fuzz_steps.CALLS
        errors += sum(": the error" in label for label, _ in results)
        losses = [np.frombuffer(v[3], v[2]) for label, v in results if ": the loss" in label]
        lost += sum(not np.isfinite(loss).all() for loss in losses)
    assert errors < 0.1 * calls
    assert lost < 0.05 * calls


def finds(way, make=fuzz_steps.make, run=fuzz_steps.run, count=200):
    """Return the message of the first program in which a way differs from eager."""
    for seed in range(count):
        try:
            fuzz_steps.check(make(seed), run, one=way)
        except AssertionError as error:
            return str(error)
    return ""


class Forgetful(list):
    """A list whose later elements get lost."""

    def append(self, x):
        if len(self) < 3:
            super().append(x)


@pytest.mark.parametrize(("make", "run"), [m[:2] for m in MAKERS], ids=["steps", "fits"])
def test_the_fuzzer_finds_a_side_effect_that_does_not_happen(make, run, monkeypatch):
    class Broken(Eager):
        pass

    def execute(program, way, execute=fuzz_steps.execute):
        names = execute(program, way)
        if way is Broken:
            names["log"], names["kept"] = Forgetful(), Forgetful()
        return names

    monkeypatch.setattr(fuzz_steps, "execute", execute)
    monkeypatch.setattr(fuzz_fits, "execute", execute)
    assert re.match(r"(call \d: )?(log|kept)", finds(Broken, make, run))


def test_the_fuzzer_finds_a_number_that_stays_as_it_was(monkeypatch):
    """A float that is multiplied with is that of the first call of the line."""
    multiply = tp.Tensor.__mul__

    class Broken(Eager):
        known = None

        class Trainer(eager.Eager):
            def __init__(self, *args):
                super().__init__(*args)
                Broken.known = {}

    def stale(self, other):
        code = sys._getframe(1)
        if type(other) is float and code.f_code.co_filename.endswith("of Broken>"):
            other = Broken.known.setdefault((code.f_code, code.f_lasti), other)
        return multiply(self, other)

    monkeypatch.setattr(tp.Tensor, "__mul__", stale)
    message = finds(Broken)
    assert "* float(" in message
    assert ", eager " in message


def test_the_fuzzer_finds_memory_that_is_written_to_again():
    """Of a state that the caller has, a later step overwrites the parameters."""

    class Broken(Eager):
        class Trainer(eager.Eager):
            def step(self, st, *args):
                value, after = super().step(st, *args)
                pairs = zip(tp.ptree.leaves(st.vars.params), tp.ptree.leaves(after.vars.params), strict=True)
                for old, new in pairs:
                    old.array.flags.writeable = True
                    old.array[...] = new.array
                return value, after

    assert re.match(r"state 0.params.* eager", finds(Broken))


def test_a_difference_is_told_with_little_source():
    class Broken(Eager):
        class Trainer(eager.Eager):
            def predict(self, st, x, ctx=None):
                return super().predict(st, x, ctx) + 1

    message = finds(Broken)
    assert re.match(
        r"call \d: the prediction\[0, 0\] is np.float32\(.*\), eager .*: 16 of 16 differ", message
    )
    assert "no pieces" in message
    assert "sequential([tp.layer.linear(D, D), tp.layer.linear(D, D)])" in message
