"""A user's program has the types that its author expects: mypy --strict and pyright find no error in it."""

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PROGRAM = TESTS / "typed_program.py"


@pytest.fixture
def folder(tmp_path):
    """A folder with the program, and the package as it is installed.

    Type checkers do not find an editable install whose folders are mapped to other names.
    """
    package = tmp_path / "treepie"
    package.mkdir()
    for entry in (TESTS.parent / "api").iterdir():
        (package / entry.name).symlink_to(entry)
    for layer in ("autodiff", "kernels"):
        (package / layer).symlink_to(TESTS.parent / layer)
    shutil.copy(PROGRAM, tmp_path)
    return tmp_path


def check(folder, checker, *options):
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")
    command = [sys.executable, "-m", checker, *options, PROGRAM.name]
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def mypy(folder):
    # Without a configuration: what imports bring is not reported, all of it is read.
    return check(folder, "mypy", "--strict", "--follow-imports=silent", "--config-file=", "--cache-dir=.mypy")


def pyright(folder):
    return check(folder, "pyright", "--pythonpath", sys.executable)


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_type_checkers_find_no_error(folder, checker):
    result = checker(folder)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_type_checkers_find_wrong_calls(folder, checker):
    """Nothing above is accepted only because it is Any."""
    wrong = {
        "scaled(1, 2, 3)": "a call of a jitted function with too many arguments",
        "tp.Data.of_array(['a']).map(len).to_list()[0].upper()": "an int of a pipeline taken for a string",
        "tp.tensor([1.0]).nothing()": "a method that tensors do not have",
        "tp.Trainer(tp.optim.sgd(0.1), tp.optim.sgd(0.1))": "an optimizer in the place of a model",
        "tp.no_such_function()": "a function that there is not",
    }
    program = folder / PROGRAM.name
    lines = program.read_text(encoding="utf-8").splitlines()
    start = len(lines)
    program.write_text("\n".join([*lines, *wrong, ""]), encoding="utf-8")
    result = checker(folder)
    for number, what in enumerate(wrong.values(), start + 1):
        assert f"{PROGRAM.name}:{number}:" in result.stdout, what
    assert result.returncode == 1


def test_the_program_runs(capsys):
    if sys.version_info < (3, 11):
        pytest.importorskip("typing_extensions")
    runpy.run_path(str(PROGRAM), run_name="__main__")
