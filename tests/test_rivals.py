"""100 steps of every optimizer against PyTorch's: stored ones, and those of the PyTorch that is installed."""

import json

import numpy as np
import pytest

import treepie as tp

from . import rivals

TOLERANCE = {"float32": 1e-6, "float64": 1e-12}


def by_treepie(name, dtype, rate=rivals.RATE):
    kind, options, *_ = rivals.CASES[name]
    opt = getattr(tp.optim, kind)(rate, **options)
    params = {"w": tp.tensor(rivals.START, dtype)}
    state, shown = opt.init(params), []
    for step in range(rivals.STEPS):
        params, state = opt.update(state, params, {"w": rivals.gradient(step, params["w"].numpy())})
        if step + 1 in rivals.SHOWN:
            shown.append(params["w"].numpy())
    assert state.count == rivals.STEPS
    assert shown[-1].dtype == dtype
    return shown


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", rivals.CASES)
def test_stored(name, dtype):
    stored = json.loads(rivals.STORED.read_text(encoding="utf-8"))
    assert np.abs(rivals.START).min() > 1
    np.testing.assert_allclose(by_treepie(name, dtype), stored[name], rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", rivals.CASES)
def test_installed(name, dtype):
    pytest.importorskip("torch")
    np.testing.assert_allclose(by_treepie(name, dtype), rivals.by_torch(name), rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.parametrize("name", rivals.CASES)
def test_a_rate_that_is_wrong_by_one_in_a_hundred_is_seen(name):
    stored = json.loads(rivals.STORED.read_text(encoding="utf-8"))
    wrong = by_treepie(name, "float32", rivals.RATE * 1.01)
    assert np.abs(wrong / np.array(stored[name]) - 1).max() > 1e-5
