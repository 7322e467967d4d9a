"""The benchmarks of training still run, and write README's tables as they should."""

import importlib
import sys
from pathlib import Path

import pytest

PERF = Path(__file__).parents[1] / "perf"


@pytest.fixture
def perf(monkeypatch):
    """A function that imports a module of perf/, which is no package."""
    monkeypatch.syspath_prepend(str(PERF))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(PERF)):
            del sys.modules[name]


@pytest.mark.parametrize("name", ["xor", "gpt"])
def test_the_step_that_is_timed_learns(perf, name):
    run = perf("with_treepie").step(name)
    losses = [run() for _ in range(17)]
    assert losses[16] < losses[8] < losses[0]  # of one batch; there are eight


def test_weights_for_the_rivals_are_those_of_a_layer_each(perf):
    shapes = [w.shape for w in perf("with_treepie").weights("gpt")]
    assert shapes[:6] == [(65, 128), (128, 128), (128,), (128,), (128, 384), (128, 128)]
    assert len(shapes) == 2 + 4 * 10 + 4


def test_a_table_keeps_the_rows_that_were_not_measured(perf, tmp_path, monkeypatch):
    report = perf("report")
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- a -->\n<!-- end -->\nbelow\n<!-- b -->\nother\n<!-- end -->\n", "utf-8")
    monkeypatch.setattr(report, "README", readme)
    report.write("a", "first", ["step", "ms"], {"x": ["x", "1"], "y": None})
    report.write("a", "second", ["step", "ms"], {"x": None, "y": ["y", "2"]})
    assert report.rows("a") == (["step", "ms"], {"x": ["x", "1"], "y": ["y", "2"]})
    table = "| step | ms |\n| --- | --- |\n| x | 1 |\n| y | 2 |\n"
    after = "<!-- end -->\nbelow\n<!-- b -->\nother\n<!-- end -->\n"
    assert readme.read_text("utf-8") == f"above\n<!-- a -->\nsecond\n\n{table}{after}"
    with pytest.raises(ValueError, match="measure all models"):
        report.write("a", "third", ["step", "us"], {"x": ["x", "1"], "y": None})


def test_the_plot_is_of_medians_over_ours(perf):
    header, rows = ["step", "treepie, ms", "JAX, ms", "of"], {"`m`: x": ["`m`: x", "1 / 2", "3 / 5", "0.4"]}
    assert perf("plot").ratios(header, rows) == {"m": {"JAX": 2.5}}
