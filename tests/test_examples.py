"""The examples run as users run them, and start no other process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import treepie as tp
from treepie.__main__ import main

MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist"

# Any of these in the process that trains would mean that something is built or looked up outside.
GUARD = """
import runpy, sys
STARTS = {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}
def guard(event, args):
    if event in STARTS or event.startswith("subprocess."):
        print("started a process:", event, args, file=sys.stderr, flush=True)
        import os
        os._exit(3)
sys.addaudithook(guard)
runpy.run_module("treepie.examples." + sys.argv.pop(1), run_name="__main__")
"""


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ("xor", "a xor b  predicted"),
        ("digits", "test accuracy 9"),
        ("own_kernel", "moving averages: 2.000 and -1.000"),
        ("transfer", "weights: 39 of 39 loaded"),
        ("finetune", "from scratch"),
        ("tabular", "test AUC 0.96"),
        ("custom_loop", "test accuracy 98"),
    ],
)
def test_example(example, expected):
    # PATH is left alone: pytest itself may need it, and a compiler found there must not be used.
    environment = {**os.environ, "CC": "/bin/false", "CXX": "/bin/false"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", GUARD, example],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert expected in done.stdout


@pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST is not here")
def test_mnist_reaches_988_of_1000_in_three_epochs():
    command = [sys.executable, "-W", "error", "-m", "treepie.examples.mnist", str(MNIST)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 3: test accuracy 9" in done.stdout


def test_chars_learns_a_text_of_ones_own(tmp_path):
    """40 steps on a text of a few words: their mean loss, from log(7) = 1.9 on."""
    text = tmp_path / "text.txt"
    text.write_text("to be or not " * 200)
    command = [sys.executable, "-W", "error", "-m", "treepie.examples.chars", str(text), "--steps", "40"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    loss = float(done.stdout.split("step 40, loss ")[1].split(",")[0])
    assert loss < 1.5


def test_import_is_light():
    code = (
        "import sys, treepie as tp; "
        "assert not {'numba', 'tqdm', 'torch', 'scipy'} & set(sys.modules); "
        "from treepie.kernels.compilations import compilations; assert compilations.count == 0"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_show_config(capsys):
    tp.show_config()
    shown = capsys.readouterr().out
    for name in ("treepie", "numba", "CPU", "vector width", "threads", "kernel cache"):
        assert name in shown
    assert tp.__version__ in shown


def test_digits():
    (x_train, y_train), (x_test, y_test) = tp.datasets.digits()
    assert (x_train.shape, x_test.shape) == ((1437, 64), (360, 64))
    assert (x_train.dtype, y_train.dtype) == (tp.float32, tp.int32)
    assert (x_train.numpy().min(), x_train.numpy().max()) == (0, 1)
    assert np.bincount(np.concatenate([y_train, y_test])).tolist() == [
        *(178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
    ]
    sklearn = pytest.importorskip("sklearn.datasets")
    images, labels = sklearn.load_digits(return_X_y=True)
    np.testing.assert_array_equal(x_test, images[::5].astype(np.float32) / 16)
    np.testing.assert_array_equal(y_test, labels[::5])


def test_the_command_line_shows_the_machine_and_warms_the_cache(capsys):
    main(["info"])
    assert "kernel cache" in capsys.readouterr().out
    main(["warmup", "float32"])
    main(["warmup", "float32"])
    first, second = capsys.readouterr().out.splitlines()
    assert "operations in float32" in first
    assert " 0 kernels compiled" in second
    with pytest.raises(SystemExit):
        main(["warmup", "float16"])
    assert "a dtype is 'float16', expected float32 or float64" in capsys.readouterr().err
