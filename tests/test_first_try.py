"""What README tells a newcomer to type at a shell exists, and the files that a package should have."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import treepie as tp
from treepie.__main__ import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = sorted(set(re.findall(r"python3? -m (treepie\.[\w.]+)", README)))
COMMANDS = sorted(set(re.findall(r"python3? -m treepie (\w+)", README)))


def test_readme_names_modules_and_commands():
    assert {"treepie.run", "treepie.docs", "treepie.examples.digits"} <= set(MODULES)
    assert COMMANDS == ["info", "plot", "warmup"]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_readme_exist(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"python -m treepie {command}" in capsys.readouterr().out


@pytest.mark.parametrize("module", [m for m in MODULES if "examples" not in m])
def test_modules_of_readme_explain_themselves(module):
    """Those of examples are run by `test_examples.py`."""
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"python -m {module}" in done.stdout


def test_extras_of_readme_exist():
    extras = set(re.findall(r"(?:treepie|\.)\[([\w,]+)\]", README))
    assert {"plot", "mpi", "docs", "test"} <= extras
    assert extras <= set(metadata.metadata("treepie").get_all("Provides-Extra"))


def test_folders_that_readme_creates_are_not_under_version_control():
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    folders = set(re.findall(r"python3 -m venv (\S+)", README))
    assert folders == {".venv", ".venv-test"}
    assert {f"{folder}/" for folder in folders} <= set(ignored)


def test_there_is_a_licence():
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert metadata.metadata("treepie")["License-Expression"] == "MIT"


def test_a_kernel_is_one_kernel_and_two_are_kernels(capsys):
    from treepie.kernels.compilations import Compilations

    for count, text in ((1, "1 kernel in"), (2, "2 kernels in")):
        compilations = Compilations()
        with compilations.watch():
            for _ in range(count):
                with compilations.one():
                    compilations.seconds += 1.5
        assert capsys.readouterr().err.split("...")[1].startswith(f" {text}")


def test_an_error_and_an_interrupt_hold_the_last_state():
    x = np.ones((8, 2), np.float32)
    trainer = tp.Trainer(tp.layer.linear(2, 1), tp.optim.sgd(0.1))
    st = trainer.init(rngs=tp.rng.key(0))
    for kind in (KeyboardInterrupt, ValueError, SystemExit):

        def stop(step, loss, st, kind=kind):
            if step == 3:
                raise kind

        data = tp.Data.prepare((x, x[:, :1]), batch_size=2)
        with pytest.raises(kind) as caught:
            trainer.fit(st, data, loss=tp.loss.mse, report=stop)
        assert caught.value.state.step == 3


def test_masked_elements_are_refused_wherever_arrays_are_taken():
    """NumPy's conversion would take the values under the mask."""
    trainer = tp.Trainer(tp.layer.linear(2, 1), tp.optim.sgd(0.1))
    st, y = trainer.init(rngs=tp.rng.key(0)), np.zeros((4, 1), np.float32)
    clear = np.ma.masked_array(np.ones((4, 2), np.float32))
    masked = np.ma.masked_array(np.ones((4, 2), np.float32), mask=np.eye(4, 2))
    uses = {
        "tensor": tp.tensor,
        "predict": lambda x: trainer.predict(st, x),
        "step": lambda x: trainer.step(st, x, loss=lambda out: out.mean()),
        "prepare": lambda x: tp.Data.prepare((x, y), batch_size=2),
        "elements": lambda x: trainer.fit(st, tp.Data.of_array([(x, y)]), loss=tp.loss.mse),
        "op": lambda x: tp.exp(x),
        "loss": lambda x: tp.loss.mse(x, np.zeros((4, 2))),
    }
    for name, use in uses.items():
        use(clear)
        with pytest.raises(ValueError, match="masked array with 2 of 8 elements masked"):
            use(masked)
            raise AssertionError(name)


@pytest.mark.parametrize("values", [[1, 2], [1.5, 2], [True, False], [1, 2.5, True]])
def test_numbers_as_objects_are_refused_with_what_to_do(values):
    with pytest.raises(
        TypeError, match=r"dtype object, expected numbers or bools: data.astype\(np.float32\)"
    ):
        tp.tensor(np.array(values, object))


def test_data_that_is_no_numbers_is_refused_before_training():
    x = np.zeros((4, 2), np.float32)
    for labels in (np.array(["a", "b"] * 2), np.array(["a", None] * 2), np.array([1, 2, 3, 4], object)):
        with pytest.raises(TypeError, match="expected numbers or bools"):
            tp.Data.prepare((x, labels), batch_size=2)


def test_a_callback_refuses_a_missing_score_before_the_first_step():
    """An epoch may take hours."""
    x, steps = np.ones((4, 2), np.float32), []
    trainer = tp.Trainer(tp.layer.linear(2, 1), tp.optim.sgd(0.1))
    st = trainer.init(rngs=tp.rng.key(0))
    data, test = (tp.Data.prepare((x, x[:, :1]), batch_size=2) for _ in range(2))
    for make in (tp.callback.early_stopping, tp.callback.reduce_on_plateau, tp.callback.best):
        options = {"patience": 3} if make is not tp.callback.best else {}
        with pytest.raises(ValueError, match=r"metric is 'mea' \(did you mean 'mae'\?\)"):
            trainer.fit(
                st,
                data,
                loss=tp.loss.mse,
                validate=(test, {"mae": tp.metric.MAE()}),
                callbacks=[make("mea", mode="min", **options)],
                report=lambda *_: steps.append(1),
            )
    assert steps == []


REDUCTIONS = (np.all, np.any, np.max, np.mean, np.min, np.prod, np.std, np.sum, np.var)


@pytest.mark.parametrize("function", REDUCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("options", [{}, {"axis": 1}, {"axis": 0, "keepdims": True}])
def test_reductions_of_numpy_take_tensors(function, options):
    """They would call the methods of a tensor, which have other arguments."""
    array = np.array([[1.0, 2.0, 0.0], [4.0, 5.0, 6.0]], np.float32)
    for result in (function(tp.tensor(array), **options), function(a=tp.tensor(array), **options)):
        np.testing.assert_array_equal(result, function(array, **options))
        assert not isinstance(result, tp.Tensor)


def test_a_reduction_of_numpy_loses_no_gradient():
    with pytest.raises(TypeError, match="a gradient is being taken that depends on it"):
        tp.grad(lambda x: tp.tensor(np.mean(x)))(tp.ones(3))


def test_other_functions_of_numpy_take_tensors():
    t = tp.tensor([[3.0, 1.0], [2.0, 5.0]])
    for function in (np.argmax, np.median, np.sort, np.cumsum, np.unique, np.transpose, np.ravel, np.shape):
        np.testing.assert_array_equal(function(t), function(t.numpy()))
    joined = np.concatenate([t, np.ones((1, 2))])
    assert (type(joined), joined.shape) == (np.ndarray, (3, 2))
    assert np.clip(t, 0, 2).max() == 2


def test_a_batch_of_examples_says_how_to_stack_it():
    x = np.ones((8, 2), np.float32)
    trainer = tp.Trainer(tp.layer.linear(2, 1), tp.optim.sgd(0.1))
    st, examples = trainer.init(rngs=tp.rng.key(0)), tp.Data.of_fn(8, lambda i: (x[i], x[i, :1]))
    with pytest.raises(TypeError, match=r"data\.map\(lambda batch: tuple\(map\(tp\.data\.stack_batch"):
        trainer.fit(st, examples.batch(4), loss=tp.loss.mse)
    with pytest.raises(TypeError, match=r"the elements are tuples, .* lambda batch: tuple\(map\("):
        trainer.fit(st, examples.map_batch(4, tp.data.stack_batch), loss=tp.loss.mse)
    stacked = examples.batch(4).map(lambda batch: tuple(map(tp.data.stack_batch, zip(*batch, strict=True))))
    assert trainer.fit(st, stacked, loss=tp.loss.mse).step == 2
