"""Every example in README and in docstrings runs; README's shell lines are what CI runs."""

import doctest
import importlib
import inspect
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


class Finder(doctest.DocTestFinder):
    """Takes a decorated function for one of the module that defines it, unlike `doctest.testmod`."""

    def _from_module(self, module, object):
        return super()._from_module(module, inspect.unwrap(object))


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in Finder().find(importlib.import_module(name)):
        runner.run(test)
    assert runner.failures == 0


def test_docstrings_of_decorated_functions_are_looked_at():
    tests = Finder(exclude_empty=False).find(treepie.layer.basic)
    assert "treepie.layer.basic.linear" in {test.name for test in tests}
