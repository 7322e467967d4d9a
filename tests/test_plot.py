"""Plots of histories and confusion matrices, their files, and the command that draws them."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import treepie as tp
from treepie.__main__ import main

ROOT = Path(__file__).parents[1]


def history_of(steps, epochs=0, scores=lambda k: {}):
    """Return a history whose losses are 1 / step."""
    history = tp.History()
    for k in range(1, steps + 1):
        history.add_step(k, 1 / k)
        if epochs and k % (steps // epochs) == 0:
            history.end_epoch(k, scores(k))
    return history


def confusion(classes=3, examples=60):
    matrix = tp.metric.ConfusionMatrix()
    rng = np.random.default_rng(0)
    matrix.update(rng.random((examples, classes)), rng.integers(0, classes, examples))
    return matrix


@pytest.fixture
def plt():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


# ---- without matplotlib
def test_the_error_without_matplotlib_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for plot in (history_of(3).plot, confusion().plot):
        with pytest.raises(ImportError, match=re.escape('pip install "treepie[plot]"')):
            plot()
    history_of(3).save(tmp_path / "h.jsonl")
    with pytest.raises(SystemExit):
        main(["plot", str(tmp_path / "h.jsonl")])
    assert "plot: plots are drawn by matplotlib" in capsys.readouterr().err


def test_the_extra_exists():
    assert re.search(
        r'^plot = \["matplotlib', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )


def test_nothing_is_drawn_of_nothing():
    with pytest.raises(ValueError, match="no steps and no epochs"):
        tp.History().plot()
    with pytest.raises(ValueError, match="no elements"):
        tp.metric.ConfusionMatrix().plot()
    with pytest.raises(ValueError, match="labels has 2 names, expected 3"):
        confusion().plot(labels=["a", "b"])


# ---- histories
def lines(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def test_losses_and_scores_have_panels(plt):
    history = history_of(
        40, 4, lambda k: {"accuracy": k / 40, "f1": 0.5, "mse": 100.0 / k, "val_loss": 2.0 / k}
    )
    axes = history.plot()
    assert [ax.get_title() for ax in axes] == ["Loss", "Scores", "mse"]
    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in axes] == [
        ("step", "loss"),
        ("epoch", "score"),
        ("epoch", "mse"),
    ]
    drawn = lines(axes[0])
    assert list(drawn) == ["step", "mean of the epoch", "val_loss"]
    assert drawn["step"].tolist() == [[k, 1 / k] for k in range(1, 41)]
    assert drawn["mean of the epoch"][:, 0].tolist() == [5, 15, 25, 35]
    assert drawn["val_loss"].tolist() == [[k, 2 / k] for k in (10, 20, 30, 40)]
    assert lines(axes[1])["accuracy"].tolist() == [[1, 0.25], [2, 0.5], [3, 0.75], [4, 1.0]]
    assert list(lines(axes[1])) == ["accuracy", "f1"]
    assert axes[0].get_legend() is not None
    assert axes[2].get_legend() is None
    assert axes[0].get_yscale() == "log"  # from 1 to 1 / 40
    assert history_of(20, 2).plot()[0].get_yscale() == "linear"


def test_many_steps_are_drawn_as_means_of_blocks(plt):
    history = history_of(20_000)
    history.steps[5] = (6, float("nan"))
    (axes,) = history.plot()
    ((label, points),) = lines(axes).items()
    assert label == "mean of 50 steps"
    assert len(points) == 400
    assert points[1].tolist() == pytest.approx([75.5, np.mean([1 / k for k in range(51, 101)])])
    assert np.isfinite(points).all()
    assert len(axes.collections) == 1  # the range of each block


@pytest.mark.parametrize("count", [401, 540, 799, 801])
def test_blocks_of_steps_have_one_length(plt, count):
    ((label, points),) = lines(history_of(count).plot()[0]).items()
    size = -(-count // 400)
    assert label == f"mean of {size} steps"
    assert len(points) == -(-count // size)
    assert (points[0, 0], np.ptp(np.diff(points[:-1, 0]))) == ((1 + size) / 2, 0)


def test_odd_histories_are_drawn(plt):
    for history in (
        history_of(1),
        history_of(1, 1),
        history_of(6, 2, lambda k: {"matrix": tp.zeros((2, 2)), "nan": float("nan")}),
        history_of(6, 3, lambda k: {"late": 0.5} if k > 2 else {}),
        history_of(4, 2, lambda k: {name: float(k) for name in "abcdefg"}),
    ):
        axes = history.plot()
        axes[0].figure.canvas.draw()
    assert len(axes) == 8
    only_epochs = tp.History()
    only_epochs.restore([], history_of(6, 2).epochs, 0)
    assert list(lines(only_epochs.plot()[0])) == ["mean of the epoch"]


def test_plot_shows_no_window_and_leaves_the_style_alone(plt, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *a, **k: pytest.fail("show was called"))
    before = dict(plt.rcParams)
    axes = history_of(4).plot()
    assert dict(plt.rcParams) == before
    assert plt.gcf() is axes[0].figure


# ---- files
def test_a_saved_history_is_the_same_when_loaded(tmp_path):
    matrix = tp.tensor([[1, 0], [2, 3]])
    history = history_of(6, 3, lambda k: {"accuracy": np.float32(0.5), "matrix": matrix})
    history.add_step(7, float("nan"))
    path = tmp_path / "new" / "history.jsonl"
    history.save(path)
    history.save(path)
    assert [p.name for p in path.parent.iterdir()] == ["history.jsonl"]
    again = tp.History.load(path)
    assert repr(again.steps) == repr(history.steps)
    assert again.begun == history.begun == 6
    assert [e["accuracy"] for e in again.epochs] == [0.5] * 3
    assert again.epochs[0]["matrix"].tolist() == matrix.tolist()
    assert again.epochs[0]["matrix"].dtype == matrix.dtype
    first = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:3]]
    assert first[:2] == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    assert (first[2]["epoch"], first[2]["step"], first[2]["loss"]) == (1, 2, 0.75)


@pytest.mark.parametrize("line", ["loss 1.0", "[1, 2]", '{"step": 1}', "3", '{"loss": 1.0, "step": null}'])
def test_another_file_is_refused_with_its_line(tmp_path, line):
    path = tmp_path / "h.jsonl"
    path.write_text(f'{{"step": 1, "loss": 1.0}}\n{line}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 2 of .*h\.jsonl") as caught:
        tp.History.load(path)
    assert line[:10] in str(caught.value)


def fit(folder, history=None):
    trainer = tp.Trainer(tp.layer.linear(2, 1), tp.optim.sgd(0.1))
    data = tp.Data.prepare((tp.ones((8, 2)), tp.zeros((8, 1))), batch_size=2)
    scored = tp.Data.prepare((tp.ones((8, 2)), tp.zeros((8, 1))), batch_size=8)
    return trainer.fit(
        trainer.init(rngs=tp.rng.key(0)),
        data,
        loss=tp.loss.mse,
        epochs=2,
        validate=(scored, {"mae": tp.metric.MAE()}),
        checkpoint=tp.checkpoint.every(3, folder),
        history=history,
    )


def test_the_history_of_a_folder_of_checkpoints(tmp_path):
    history = tp.History()
    fit(tmp_path / "run", history)
    loaded = tp.History.load(tmp_path / "run")
    assert (loaded.steps, loaded.epochs, loaded.begun) == (history.steps, history.epochs, history.begun)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty has no checkpoint of Trainer\.fit"):
        tp.History.load(tmp_path / "empty")
    with pytest.raises(FileNotFoundError):
        tp.History.load(tmp_path / "missing.jsonl")


# ---- confusion matrices
def test_a_confusion_matrix_is_drawn_with_its_counts_and_names(plt):
    matrix = confusion()
    counts = matrix.compute().numpy()
    ax = matrix.plot(labels=["cat", "dog", "owl"])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["cat", "dog", "owl"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["cat", "dog", "owl"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")
    assert [int(t.get_text()) for t in ax.texts] == counts.ravel().tolist()
    assert ax.get_title() == f"{np.trace(counts) / 60:.1%} of 60 right"
    shares = ax.images[0].get_array()
    assert np.allclose(shares.sum(1), 1)
    assert np.allclose(shares, counts / counts.sum(1, keepdims=True))


def test_a_confusion_matrix_on_axes_of_ones_own_and_of_other_metrics(plt):
    _, axes = plt.subplots(1, 2)
    assert confusion().plot(ax=axes[1]) is axes[1]
    assert axes[1].images
    assert not axes[0].images
    f1 = tp.metric.F1()
    f1.update([[0.1, 0.9], [0.8, 0.2]], [1, 1])
    assert [t.get_text() for t in f1.plot().texts] == ["0", "0", "1", "1"]


@pytest.mark.parametrize("classes", [2, 3, 5, 10, 12])
@pytest.mark.parametrize("width", [None, 5.0])
def test_names_of_classes_do_not_overlap(plt, classes, width):
    for letters in (1, 4, 6, 9, 20):
        ax = None if width is None else plt.subplots(figsize=(width, width), layout="constrained")[1]
        ax = confusion(classes, 400).plot(labels=["m" + "e" * (letters - 1)] * classes, ax=ax)
        ax.figure.canvas.draw()
        boxes = [text.get_window_extent() for text in ax.get_xticklabels()]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
        plt.close(ax.figure)


def test_short_names_of_classes_are_horizontal(plt):
    ax = confusion(2).plot(labels=["stays", "leaves"])
    assert [text.get_rotation() for text in ax.get_xticklabels()] == [0, 0]


def test_many_classes_have_no_counts(plt):
    ax = confusion(100, 1000).plot()
    assert list(ax.texts) == []
    assert len(ax.get_xticks()) == 50


# ---- the command
def test_the_command_draws_a_file(plt, tmp_path, capsys):
    history = history_of(10, 2, lambda k: {"accuracy": 0.5})
    history.save(tmp_path / "history.jsonl")
    main(["plot", str(tmp_path / "history.jsonl")])
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    main(["plot", str(tmp_path / "history.jsonl"), "-o", str(tmp_path / "new" / "curves.svg")])
    assert b"<svg" in (tmp_path / "new" / "curves.svg").read_bytes()
    assert "curves.svg: History(epochs=2, steps=10" in capsys.readouterr().out
    fit(tmp_path / "run")
    main(["plot", str(tmp_path / "run"), "-o", str(tmp_path / "run.png")])
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_the_command_draws_what_fit_writes(plt, tmp_path, capsys):
    """The file of a history, with one of checkpoints beside it, and that of `tp.callback.csv`."""
    history = tp.History(tmp_path / "run" / "history.jsonl")
    fit(tmp_path / "run", history)
    loaded = tp.History.load(history.file)
    assert (loaded.steps, loaded.epochs, loaded.begun) == (history.steps, history.epochs, history.begun)
    x, table = np.ones((4, 1), np.float32), tp.callback.csv(tmp_path / "scores.csv")
    data = tp.Data.prepare((x, x), batch_size=2)
    scores = {"mae": tp.metric.MAE(), "matrix": tp.metric.ConfusionMatrix()}
    validate = tp.Data.repeat(1, (x, x)), scores
    trainer = tp.Trainer(tp.layer.sequential([tp.layer.linear(1, 1), tp.layer.sigmoid()]), tp.optim.sgd(0.1))
    options = {"callbacks": [table], "validate": validate, "history": history, "epochs": 3}
    trainer.fit(trainer.init(tp.rng.key(0)), data, loss=tp.loss.mse, **options)
    loaded = tp.History.load(tmp_path / "scores.csv")
    assert [e["mae"] for e in loaded.epochs] == [e["mae"] for e in history.epochs[-3:]]
    assert [(e["epoch"], e["step"]) for e in loaded.epochs] == [(1, 2), (2, 4), (3, 6)]
    assert isinstance(loaded.epochs[0]["matrix"], str)
    for file in ("run/history.jsonl", "scores.csv"):
        main(["plot", str(tmp_path / file), "-o", str(tmp_path / "curves.png")])
        assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert "curves.png: History(epochs=3, steps=0" in capsys.readouterr().out


@pytest.mark.parametrize("row", ["one,2,0.5", "1,,0.5", "1", "1,2,0.5,7"])
def test_a_table_of_other_content_is_refused(tmp_path, row):
    (tmp_path / "scores.csv").write_text(f"epoch,step,loss\n1,2,0.5\n{row}\n")
    with pytest.raises(ValueError, match=r"History.load: line 3 of .*scores.csv is no row of an epoch"):
        tp.History.load(tmp_path / "scores.csv")


@pytest.mark.parametrize("arguments", [["missing.jsonl"], ["."], ["wrong.jsonl"], ["h.jsonl", "-o", "x.abc"]])
def test_the_command_refuses_in_a_line(plt, tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.jsonl").write_bytes(b"\x89\xff\n")
    history_of(3).save("h.jsonl")
    with pytest.raises(SystemExit) as caught:
        main(["plot", *arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("python -m treepie: error: plot: ")


@pytest.mark.parametrize("command", ["info", "warmup", "plot"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: python -m treepie {command}" in out
    assert re.search(r"\n[A-Z][^\n]*\.\n", out)  # a sentence says what it does


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(f"\n    {command} " in out for command in ("info", "warmup", "plot"))
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"treepie {tp.__version__}\n"


def test_h_is_no_folder_of_mnist():
    command = [sys.executable, "-m", "treepie.examples.mnist", "-h"]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0
    assert "[folder]" in result.stdout


@pytest.mark.parametrize("n", [2, 3, 12])
def test_long_names_of_classes_leave_room_for_the_counts(plt, n):
    """The figure grows by the names, and each count fits into its cell."""
    m = tp.metric.ConfusionMatrix()
    m.update(np.eye(n)[np.arange(20_000) % n], np.arange(20_000) % n)
    names = [f"a rather long name of class number {k}" for k in range(n)]
    for labels in (None, names, [name * 3 for name in names]):
        axes = m.plot(labels)
        axes.figure.canvas.draw()
        cell = axes.get_window_extent().width / n
        assert max(t.get_window_extent().width for t in axes.texts) < cell
        for text in (*axes.get_yticklabels(), *axes.get_xticklabels()):
            assert len(text.get_text()) <= 40
            assert axes.figure.bbox.padded(1).contains(*text.get_window_extent().min)
        plt.close("all")


def test_many_epochs_have_no_markers(plt):
    few, many = history_of(40, 40).plot()[0], history_of(41, 41).plot()[0]
    assert (few.get_lines()[-1].get_marker(), many.get_lines()[-1].get_marker()) == ("o", "None")
