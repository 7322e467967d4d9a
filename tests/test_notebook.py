"""A notebook, run without a browser: what it shows of objects and plots."""

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
]

RUN = """
import json, sys, nbformat
from nbclient import NotebookClient
cells = [nbformat.v4.new_code_cell(code) for code in json.load(open(sys.argv[1]))]
notebook = nbformat.v4.new_notebook(cells=cells)
NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
print(json.dumps([[o for o in c.outputs if o.output_type != "stream"] for c in notebook.cells]))
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Return for each cell its outputs: a dict of the formats of each."""
    for name in ("nbclient", "ipykernel", "matplotlib"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "cells.json").write_text(json.dumps(CELLS), encoding="utf-8")
    # In a process of its own: Jupyter's libraries give warnings, which are errors here.
    command = [sys.executable, "-c", RUN, str(folder / "cells.json")]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=folder)
    assert result.returncode == 0, result.stderr
    return [[output["data"] for output in cell] for cell in json.loads(result.stdout)]


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
