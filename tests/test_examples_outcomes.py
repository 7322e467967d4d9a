"""Each example reaches, with small settings, what it promises; all take --help and are in README."""

import importlib
import pkgutil
import re
import sys
from pathlib import Path

import pytest

from treepie import examples

NAMES = sorted(module.name for module in pkgutil.iter_modules(examples.__path__))
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs an example, which must not fall back to op by op, and returns what it prints."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        importlib.import_module(f"treepie.examples.{name}").main()
        out, err = capsys.readouterr()
        assert "op by op" not in err
        return out

    return run


@pytest.fixture
def plot(tmp_path):
    """The arguments for a plot, which must have been drawn; none without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        yield ()
        return
    matplotlib.use("Agg")
    file = tmp_path / "plot.png"
    yield "--plot", str(file)
    assert file.stat().st_size > 5000
    matplotlib.pyplot.close("all")


def number(pattern, text):
    return float(re.search(pattern + r" ([\d.]+)", text)[1])


def test_tabular_ranks_customers_and_columns(run, plot):
    out = run("tabular", "--epochs", "6", *plot)
    assert number("test AUC", out) > 0.93
    assert number("balanced accuracy", out) > 84
    lost = re.findall(r"(\w+) (-?[\d.]+)", out.split("AUC lost without ")[1])
    assert {name for name, _ in lost[:3]} == {"calls", "months", "plan"}
    assert {name for name, x in lost if abs(float(x)) < 0.01} >= {"age", "region"}  # of no influence


def test_timeseries_beats_the_naive_forecasts(run, plot):
    out = run("timeseries", "--epochs", "4", *plot)
    assert number("GRU", out) < 0.8 * min(number("last day", out), number("last week", out))


def test_autoencoder_beats_principal_components(run, plot):
    out = run("autoencoder", "--epochs", "15", *plot)
    assert number(r"error: autoencoder", out) < 0.75 * number("components", out)


def test_gan_draws_from_all_gaussians(run, plot):
    out = run("gan", "--steps", "1500", *plot)
    last = out.splitlines()[-1]
    assert "8 of 8 centres" in last
    assert number(";", last) > 80


def test_custom_loop_learns(run):
    out = run("custom_loop", "--epochs", "8")
    assert number("test accuracy", out) > 96
    assert number("Brier score", out) < 0.08
    assert number("epoch 8: loss:", out) < 0.5 * number("epoch 5: loss:", out) + 0.1


def test_reinforce_keeps_the_poles_up(run, plot):
    out = run("reinforce", *plot)
    returns = [float(x) for x in re.findall(r"average return ([\d.]+)", out)]
    assert returns[0] < 60
    assert returns[-1] > 180


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gan", ("--steps", "20"), "the mixture was not learned"),
        ("reinforce", ("--updates", "2"), "the policy was not learned"),
        ("autoencoder", ("--epochs", "1"), "principal components were not beaten"),
    ],
)
def test_examples_that_learn_too_little_fail(run, name, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run(name, *arguments)


def test_there_are_examples():
    assert {"chars", "digits", "mnist", "tabular", "timeseries", "gan"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_examples_have_help_and_are_in_readme(name, monkeypatch, capsys):
    module = importlib.import_module(f"treepie.examples.{name}")
    command = f"python -m treepie.examples.{name}"
    assert command in module.__doc__
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: {command} [-h]" in out
    assert re.search(r"\n\n[A-Z][^\n]+", out)  # a sentence says what it does
    assert f"| `{name}` |" in README
