"""A notebook, run without a browser: what it shows of objects, plots, progress and errors."""

import json
import subprocess
import sys

import pytest

CELLS = [
    "import treepie as tp",
    "model = tp.layer.sequential([tp.layer.linear(2, 8), tp.layer.relu(), tp.layer.linear(8, 2)])\nmodel",
    "tp.layer.summary(model, (1, 2))",
    "trainer = tp.Trainer(model, tp.optim.adam(1e-2))\ntrainer",
    "x = tp.rng.normal(tp.rng.key(0), (64, 2))\n"
    "data = tp.Data.prepare((x, (x[:, 0] > 0).astype(tp.int32)), batch_size=16)\ndata",
    "history, test = tp.History(), tp.Data.prepare((x, (x[:, 0] > 0).astype(tp.int32)), batch_size=64)\n"
    "st = trainer.init(rngs=tp.rng.key(1))\n"
    "st = trainer.fit(st, data, loss=tp.loss.cross_entropy_sparse, epochs=3, history=history,\n"
    "                 validate=(test, {'accuracy': tp.metric.Accuracy()}), progress=False)\nst",
    "history",
    "history.plot();",
    "m = tp.metric.ConfusionMatrix()\nm.update(trainer.predict(st, x), x[:, 0] > 0)\n"
    "m.plot(['left', 'right']);",
    "data.reset()\n"
    "trained = trainer.fit(st, data, loss=tp.loss.cross_entropy_sparse, epochs=3,\n"
    "                      validate=(test, {'accuracy': tp.metric.Accuracy()}))",
    "trainer.predict(st, x[:, :1])",
    "import os, signal\n"
    "def interrupt(step, loss, st):\n"
    "    if step == 20:\n"
    "        os.kill(os.getpid(), signal.SIGINT)\n"
    "data.reset()\n"
    "trainer.fit(st, data, loss=tp.loss.cross_entropy_sparse, epochs=100, report=interrupt)",
    "import sys\nst = sys.last_value.state\ndata.reset()\n"
    "trainer.fit(st, data, loss=tp.loss.cross_entropy_sparse)",
]

RUN = """
import json, sys, nbformat
from nbclient import NotebookClient
cells = [nbformat.v4.new_code_cell(code) for code in json.load(open(sys.argv[1]))]
notebook = nbformat.v4.new_notebook(cells=cells)
NotebookClient(notebook, timeout=300, kernel_name="python3", allow_errors=True).execute()
print(json.dumps([c.outputs for c in notebook.cells]))
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Return for each cell its outputs, as the notebook's file has them."""
    for name in ("nbclient", "ipykernel", "matplotlib"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "cells.json").write_text(json.dumps(CELLS), encoding="utf-8")
    # In a process of its own: Jupyter's libraries give warnings, which are errors here.
    command = [sys.executable, "-c", RUN, str(folder / "cells.json")]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=folder)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def outputs(cells):
    """Return for each cell its results: a dict of the formats of each."""
    return [[output["data"] for output in cell if "data" in output] for cell in cells]


def streams(cell):
    """Return what a cell writes, as one text."""
    return "".join(output["text"] for output in cell if output["output_type"] == "stream")


def rendered(text):
    """Return the lines that are left to see: a carriage return overwrites what is before it."""
    return [[part for part in line.split("\r") if part.strip()][-1:] for line in text.split("\n")]


def errors(cell):
    return [output for output in cell if output["output_type"] == "error"]


@pytest.mark.parametrize(
    ("cell", "text"), [(1, "linear(2, 8)"), (2, "output shape"), (5, "adam"), (6, "accuracy")]
)
def test_objects_are_shown_as_tables(outputs, cell, text):
    (formats,) = outputs[cell]
    assert formats["text/html"].startswith("<table>")
    assert text in formats["text/html"]


def test_others_are_shown_by_their_reprs(outputs):
    assert outputs[3][0]["text/plain"].startswith("Trainer(sequential([linear(2, 8), relu(), linear(8, 2)])")
    assert outputs[4][0]["text/plain"].startswith(
        "Data(prepare((float32 (64, 2), int32 (64,)), batch_size=16)"
    )


@pytest.mark.parametrize("cell", [7, 8])
def test_plots_are_shown_once(outputs, cell):
    assert ["image/png" in formats for formats in outputs[cell]] == [True]


def test_the_bar_ends_below_a_line_for_each_epoch(cells):
    lines = [part for line in rendered(streams(cells[9])) for part in line]
    assert [line.split("  ")[:2] for line in lines[:3]] == [[f"epoch {k}/3", "batch 4/4"] for k in (1, 2, 3)]
    assert "epoch 3/3 100%|" in lines[3]
    assert "12/12 [" in lines[3]
    assert len(lines) == 4


def test_errors_are_those_that_are_expected(cells):
    kinds = [[error["ename"] for error in errors(cell)] for cell in cells]
    assert kinds == [[]] * 10 + [["ValueError"], ["KeyboardInterrupt"], []]
    (error,) = errors(cells[10])
    assert error["evalue"].startswith("layers.0: linear(2, 8): x has 1 features, expected 2")


def test_an_interrupted_cell_leaves_the_state_of_its_last_step(outputs):
    """12 steps before, then 8, then the 4 of another pass."""
    assert outputs[12][0]["text/plain"].startswith("TrainState(step=24, ")
