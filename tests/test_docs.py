"""Every example in README and in docstrings runs; README's shell lines are what CI runs."""

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import pytest

import treepie

README = Path(__file__).parents[1] / "README.md"
MODULES = sorted(
    m.name for m in pkgutil.walk_packages(treepie.__path__, "treepie.") if "examples" not in m.name
)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", blocks("python"), ids=range(len(blocks("python"))))
def test_readme_python(block):
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_readme_begins_with_two_lines_that_install_and_run():
    first, second = blocks("sh")[:2]
    for line in (first, second):
        assert line.count("\n") == 1
        assert shlex.split(line)[:3] == ["python3", "-m", "venv"]
    assert first.endswith("-m treepie.examples.digits\n")
    assert second.endswith("-m pytest\n")


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0
