"""The benchmarks of training still run, and write README's tables as they should."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import treepie as tp
from treepie import ptree
from treepie.kernels import config

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


@pytest.mark.parametrize("case", ["nt 128x10x256", "nn 64x128x10 float64", "relu 128x512x256"])
def test_the_products_that_are_timed_run(perf, case):
    gemm = perf("gemm")
    gemm.make("treepie", case)()  # products are compared with the oracle first


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


def test_the_model_of_sums_is_fitted_to_what_is_measured(perf):
    scaling = perf("scaling")
    alpha, beta = scaling.fit([(size, 3e-6 + size / 5e9) for size in scaling.SIZES])
    np.testing.assert_allclose((alpha, beta), (3e-6, 2e-10), rtol=1e-6)


def test_steps_on_more_nodes_are_predicted(perf, monkeypatch):
    scaling = perf("scaling")
    monkeypatch.setattr(scaling, "NETWORKS", {"net": (1e9, 1e-5, 1e-6)})
    assert scaling.sum_of_nodes(1, 10**6, "net") == 0
    # Two latencies, six messages, and six quarters of the bytes.
    assert scaling.sum_of_nodes(4, 10**6, "net") == pytest.approx(2e-5 + 6e-6 + 1.5e-3)
    cells, lines = scaling.predict("mlp", 1e-3, 10**6)
    assert lines["`mlp`, net"][1] == 1
    assert lines["`mlp`, net"][2] == pytest.approx(1e-3 / (1e-3 + 2.2e-5 + 1e-3))
    assert cells["`mlp`, net"][1:3] == ["1.02", "2.02 ms, 49%"]


def test_steps_on_ranks_are_compared_with_one_process_and_ddp(perf):
    scaling = perf("scaling")
    seconds = {scaling.ONE: 2.0, scaling.TWO: 2.1, "2 ranks, without sums": 2.0, "DDP, 2 ranks": 4.2}
    times = {row: [s * 1e-3] * 3 for row, s in seconds.items()}
    cells, figures = scaling.rows_of("gpt", times, {scaling.TWO: (3, 2000)})
    row = ["2.1 / 2.1", "1.05", "0.50", "0.1 (5%)", "3", "2"]
    assert cells["`gpt`, 2 ranks"][1:] == row
    assert scaling.check("gpt", figures) == []
    assert scaling.check("gpt", figures | {"DDP": 0.9}) == ["gpt, DDP: 0.900, at most 0.8"]


def test_the_ranks_that_are_timed_train_and_sum(perf):
    pytest.importorskip("mpi4py")
    jobs = perf("scaling_jobs")
    job = jobs.Job("treepie", 2, 1)
    try:
        for what in ("steps", "without sums"):
            assert len(job.ask(what, "mlp", 3)) == 3
        calls, size = job.ask("counts", "mlp", 3)
        assert calls < 8
        assert size > 4 * 535_000
        assert min(job.ask("sum", "shared", 4096)) > 0
    finally:
        job.end()


def test_the_calls_whose_overhead_is_timed_run(perf, monkeypatch):
    monkeypatch.setattr(perf("arena"), "CALLS", 9)
    overhead = perf("overhead")
    for name in overhead.treepie_cases():
        found = [overhead.make("treepie", name)()]
        if overhead.ROWS[name].has_reference:
            found.append(overhead.make(overhead.REFERENCE, name)())
        trees = [ptree.leaves(x.vars.params) if hasattr(x, "vars") else [x] for x in found]
        assert all(np.isfinite(np.asarray(leaf)).all() for tree in trees for leaf in tree), name
        if name in (
            "layers",
            "operations",
            "counter",
            "eye",
            "eye_target",
        ):  # the same training, written otherwise
            for ours, reference in zip(*trees, strict=True):
                np.testing.assert_allclose(ours, reference, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(("library", "module"), [("PyTorch", "torch"), ("JAX", "optax")])
def test_the_calls_of_rivals_learn(perf, library, module):
    pytest.importorskip(module)
    rivals = perf("overhead_rivals")
    for case in rivals.CASES:
        call = rivals.LIBRARIES[library](case)
        first, last = call(), [call() for _ in range(8)][-1]  # of the same batch
        assert np.shape(last) == (4, 1) if case == "predict" else last < first, case


def test_overheads_are_compared_with_the_reference(perf):
    found = {"treepie": 30.0, "reference": 20.0, "JAX": 40.0}
    cells = perf("overhead").cells
    assert cells("fit", found, ["JAX"])[1:] == ["30", "40", "20", "", "16 us"]
    assert cells("weight", found, ["JAX"])[1:] == ["30", "40", "20", "1.50 times", "1.5 times"]
    assert cells("layers", {"treepie": 320.0, "reference": 20.0}, ["JAX"])[1:] == [
        *("320", "", "20", "10.0 us a layer", "10 us a layer")
    ]


def test_the_table_of_ops_has_every_row_and_its_bound(perf):
    ops = perf("ops")
    _, cells = ops.read()
    assert cells.keys() == ops.OPS.keys()
    for name, row in cells.items():
        assert row[4] == ops.bound(ops.OPS[name]), f"{name}: run python perf/ops.py --accuracy {name}"
    for row in ops.swept():
        assert float(cells[row.name][3]) <= row.ulp


def test_the_table_of_fast_functions_has_every_one_and_its_bound(perf):
    ops = perf("ops")
    lines = [line for line in ops.page()[1].splitlines() if line.startswith("| `")]
    rows = {cells[0].strip("`"): cells for cells in map(perf("report").cells, lines)}
    fast = {row.name: row for row in perf("ops_fast").swept_fast()}
    assert rows.keys() == fast.keys()
    for name, (_, error, bound, relative_to, _, speed) in rows.items():
        assert (bound, relative_to) == (f"{fast[name].ulp:g}", fast[name].relative_to), name
        assert float(error) <= fast[name].ulp
        assert float(speed) >= 1.2


def test_a_sweep_writes_only_the_errors_of_its_rows(perf, monkeypatch, tmp_path):
    ops = perf("ops")
    page = tmp_path / "OPS.md"
    page.write_text(ops.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(ops, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["ops.py", "--accuracy", "tanh", "--points", "2000"])
    before = ops.read()[1]
    ops.main()
    after = ops.read()[1]
    assert {name for name in before if before[name] != after[name]} == {"tanh"}
    assert before["tanh"][:3] + before["tanh"][6:] == after["tanh"][:3] + after["tanh"][6:]
    assert 0.9 < float(after["tanh"][3]) < 1.5
    assert 0.8 < float(after["tanh"][5]) < 1.5


def test_a_sweep_fails_where_an_error_exceeds_the_bound(perf, monkeypatch, tmp_path):
    ops = perf("ops")
    page = tmp_path / "OPS.md"
    page.write_text(ops.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(ops, "PAGE", page)
    monkeypatch.setattr(ops, "swept", lambda: [replace(ops.OPS["tanh"], ulp=0.75, _plans={})])
    monkeypatch.setattr(sys, "argv", ["ops.py", "--accuracy", "--points", "2000"])
    with pytest.raises(SystemExit, match=r"tanh of \S+ is \S+, 1\.\d+ ulp from \S+; its bound is 0\.75"):
        ops.main()


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")  # 200 epochs are few
def test_the_estimators_of_the_table_fit_and_are_held_to_the_bar(perf):
    tabular = perf("tabular")
    for way in ("treepie", "scikit-learn"):
        seconds, score = tabular.fit(way, "wine", 1)
        assert seconds > 0
        assert score > 0.9
    X, y, X_test, _ = tabular.split("diabetes", 0, raw=False)
    assert (X.dtype, X.shape, X_test.shape) == (np.float32, (353, 10), (89, 10))
    np.testing.assert_allclose([y.mean(), y.std()], [0, 1], atol=1e-12)
    results = {way: [(0.1, 0.9), (0.3, 0.8), (0.2, 0.7)] for way in tabular.WAYS}
    assert tabular.row("wine", results) == ["`wine`: 3 classes", *["0.800 / 0.2 s"] * 5, "1.0"]
    results["treepie"] = [(0.06, 0.78)]
    assert tabular.below_the_bar("wine", results) == ["wine: scores are 0.7800 and 0.8000 of scikit-learn's"]
    results["treepie"] = [(0.1, 0.795)]
    slow = "wine: 2.00 times as fast as scikit-learn's, at least 3.0"
    assert tabular.below_the_bar("wine", results) == [slow]


def small_families(models):
    """Return a case of each family at a size that takes no time."""
    return {
        "resnet": models.resnet(4, 8, (4, 8), 2),
        "separable": models.separable(4, 8, (4, 8, 8)),
        "autoencoder 4": models.autoencoder(2, 8, (1, 4, 6), 4),
        "autoencoder 2": models.autoencoder(2, 8, (3, 4, 6), 2),
        "lstm": models.characters("lstm", 3, 8, 5),
        "gru": models.characters("gru", 3, 8, 5),
        "temporal": models.temporal(2, 6, 20),
        "vit": models.vit(2, 8, 4, 8, 2, 2),
        "attention": models.attention(1, 2, 20, False),
        "causal attention": models.attention(1, 2, 20, True),
        "pinn": models.pinn(16, 6),
        "recommender": models.recommender(8, 1000, 1000, 4, "adagrad"),
        "dense recommender": models.recommender(8, 1000, 1000, 4, "adam"),
        "deep": models.deep(4, 8, 6),
        "policy": models.policy(6, 4, 8, 2),
        "act": models.act(2, 4, 8, 2),
        "bert": models.bert(2, 2, 16, 2),
    }


SMALL = [
    *("resnet", "separable", "autoencoder 4", "autoencoder 2", "lstm", "gru", "temporal", "vit", "attention"),
    *("causal attention", "pinn", "recommender", "dense recommender", "deep", "policy", "act", "bert"),
]


@pytest.mark.parametrize("name", SMALL)
def test_all_families_take_steps(perf, name):
    case = small_families(perf("families_models"))[name]
    run = perf("families_treepie").step(case)
    numbers = [run() for _ in range(9)]
    assert np.isfinite(numbers).all()
    if case.optimizer and case.loss != "returns":
        assert numbers[8] < numbers[0]  # of one batch; there are four
    else:
        assert len(set(numbers[:4])) == 4
    if not case.optimizer:
        assert numbers[:4] == numbers[4:8]


CONVOLUTIONS = ("resnet", "separable", "autoencoder 4", "autoencoder 2", "temporal")
RIVALS = [("torch", name) for name in SMALL] + [("jax", name) for name in SMALL if name not in CONVOLUTIONS]


@pytest.mark.parametrize(("library", "name"), RIVALS)
def test_rivals_of_families_do_the_same_work(perf, library, name):
    pytest.importorskip({"torch": "torch", "jax": "optax"}[library])
    ours = perf("families_treepie")
    case = small_families(perf("families_models"))[name]
    first, second = ours.step(case), perf(f"families_{library}").step(case, ours.weights(case))
    # Sparse embeddings leave the moments of rows alone that a batch does not have; JAX decays them. With AVX2
    # PyTorch is off from its own float64 by 4e-4 in `resnet`, where treepie is by 1e-7.
    loose = {("jax", "dense recommender"): 2e-3}
    if config.isa() != "avx512":
        loose["torch", "resnet"] = 1e-3
    tolerance = loose.get((library, name), 1e-4)
    np.testing.assert_allclose([first() for _ in range(5)], [second() for _ in range(5)], tolerance, 1e-5)


def test_jax_is_left_out_where_there_are_convolutions(perf):
    families = perf("families")
    assert {name for name in SMALL if not families.has_jax(name)} == set(CONVOLUTIONS)
    every = list(families.LIBRARIES)
    assert families.rivals_of("vit 0", every) == every
    assert families.rivals_of("resnet 1", every) == ["treepie", "PyTorch"]


def test_every_family_has_two_sizes(perf):
    models = perf("families_models")
    assert all(len(sizes) >= 2 for sizes in models.FAMILIES.values())
    keys = [(name.split()[0], case.text) for name, case in models.cases().items()]
    assert len(set(keys)) == len(keys)


def test_turns_beside_other_work_do_not_count(perf):
    families = perf("families")
    turns = [(0.5, [9.0, 9.0]), (0.02, [1.0]), (0.3, [4.0]), (0.0, [2.0]), (-0.01, [3.0])]
    assert families.quiet(turns) == [[3.0], [2.0], [1.0]]
    assert families.quiet(turns[:4]) == [[2.0], [1.0], [4.0]]  # the least disturbed, where few are quiet
    calm, busy = {"treepie": turns}, {"treepie": turns[:4]}
    assert families.enough(calm, families.CASE + 1)
    assert not families.enough(calm, families.CASE - 1)
    assert not families.enough(busy, families.CASE + 1)
    assert families.enough(busy, 3 * families.CASE + 1)
    assert not families.enough({"treepie": turns[:2]}, 1e9)


def test_families_that_do_other_work_are_named(perf):
    families = perf("families")
    first = {"treepie": {"numbers": [1.0, 2.0]}, "JAX": {"numbers": [1.0005, 2.004]}}
    assert families.differences("deep 0", first) == ["deep 0: JAX returns 2.004 in step 2, treepie 2"]


def test_the_table_of_families_compares_with_the_best_rival(perf):
    families = perf("families")
    times = {"treepie": [2e-3] * 3, "PyTorch": [4e-3, 5e-3, 6e-3], "JAX": [8e-3] * 3}
    first = {"treepie": {"peak": 30.0}, "PyTorch": {"peak": 60.0}, "JAX": {"peak": 90.0}}
    cells = families.row("deep 0", times, first)
    assert cells[2:] == ["2 / 2", "4 / 5", "8 / 8", "0.40", "30", "0.50"]
    assert len(cells) == len(families.HEADER)
    del times["PyTorch"], times["JAX"], first["PyTorch"], first["JAX"]
    assert families.row("deep 0", times, first)[3:] == ["", "", "", "30", ""]


def test_families_are_measured_in_processes_of_their_own(perf, monkeypatch, tmp_path):
    families = perf("families")
    monkeypatch.setenv("TREEPIE_FAMILIES", str(tmp_path))
    monkeypatch.setattr(families, "CASE", 0)
    times, first = families.measure("policy 2", ["treepie"])
    assert len(times["treepie"]) >= 3
    assert len(first["treepie"]["numbers"]) == 3


def test_the_quality_of_bfloat16_is_a_mean_of_pairs(perf):
    quality = perf("quality")
    values = {"float32": [98.0, 99.0, 97.0], "bfloat16": [98.5, 99.0, 96.5]}
    assert quality.row("mnist", values)[2:] == ["98.00 ± 1.00", "98.00 ± 1.32", "+0.00 ± 0.29"]


def test_a_seed_is_trained_once_in_each_precision(perf, monkeypatch):
    quality, runs = perf("quality"), []
    monkeypatch.setattr(quality, "SEEDS", 2)
    monkeypatch.setattr(quality, "PRECISIONS", ("float32", "bfloat16_emulated"))  # of every CPU
    x = np.float32(1 + 2**-9) * np.ones((1, 1), np.float32)

    def train(seed):
        runs.append(seed)
        return tp.matmul(x, x).item()

    assert quality.scores(train) == {
        "float32": [x.item() ** 2] * 2,
        "bfloat16_emulated": [1.0] * 2,
    }
    assert runs == [0, 0, 1, 1]


def test_a_model_whose_data_are_not_there_is_left_out(perf, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["quality.py", "mnist", "--mnist", str(tmp_path)])
    perf("quality").main()
    assert "mnist is left out: datasets.mnist" in capsys.readouterr().out
