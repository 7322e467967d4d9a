"""Against PyTorch: 100 steps of every optimizer, stored and by the PyTorch that is installed, and random
calls.

`pytest tests/test_rivals.py --fuzz 20000` compares as many random calls of functions and layers (300).
"""

import json

import numpy as np
import pytest

import treepie as tp

from . import fuzz_torch, rivals

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


def pytest_generate_tests(metafunc):
    if "seeds" in metafunc.fixturenames:
        count = max(metafunc.config.getoption("fuzz"), 300)
        metafunc.parametrize("seeds", [range(a, min(a + 100, count)) for a in range(0, count, 100)], ids=str)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_calls(seeds):
    """Values, gradients and second derivatives, in both dtypes; a failure names its seed."""
    pytest.importorskip("torch")
    found = {}
    with np.errstate(all="ignore"):
        for seed in seeds:
            difference = fuzz_torch.check(fuzz_torch.make(seed))
            if difference:
                found[seed] = difference
    assert not found


#: Public functions that compute nothing from tensors: they make them, or take functions and trees.
NOT_COMPARED = {
    "arange", "eye", "full", "full_like", "linspace", "ones", "ones_like", "tensor", "zeros", "zeros_like",
    "check_grads", "checkpoint_activations", "grad", "stop_gradient", "value_and_grad", "value_and_grad_aux",
    "cache_info", "vjp", "explain", "get_num_threads", "jit", "pure", "set_num_threads", "show_config",
    "layer.check", "layer.sequential", "layer.summary", "check_kernel", "elementwise", "kernel", "spec",
    "accuracy", "precision",
}  # fmt: skip


def test_every_public_function_and_layer_is_drawn():
    pytest.importorskip("torch")
    drawn = {fuzz_torch.make(seed).name.split(",")[0].split(" ")[0] for seed in range(8000)}
    drawn |= {f"fn.{name}" for name in drawn if hasattr(tp.fn, name)}
    drawn |= {f"loss.{name}" for name in drawn if hasattr(tp.loss, name)}
    named = {name: getattr(tp, name) for name in tp.__all__}
    for module in ("fn", "loss", "layer"):
        namespace = getattr(tp, module)
        named |= {f"{module}.{name}": getattr(namespace, name) for name in namespace.__all__}
    functions = {name for name, value in named.items() if callable(value) and not isinstance(value, type)}
    assert functions - drawn == NOT_COMPARED


def test_a_wrong_gradient_is_found(monkeypatch):
    pytest.importorskip("torch")
    case = next(
        c for c in map(fuzz_torch.make, range(10000)) if c.name == "tanh" and c.smooth and c.operands[0].size
    )
    assert fuzz_torch.check(case) is None
    case.ours = lambda x: tp.tanh(x) + 1e-6 * tp.stop_gradient(x) * x - 1e-6 * tp.stop_gradient(x * x)
    assert "gradient 0" in fuzz_torch.check(case)
