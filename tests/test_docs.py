"""Every example in README and in docstrings runs, what README says is so, and the API reference is whole."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import treepie
from treepie import docs
from treepie.autodiff import OPS

README = Path(__file__).parents[1] / "README.md"
MNIST = README.parents[1] / "shared" / "data" / "mnist"
#: Modules whose examples need an optional package.
NEEDS = {"treepie.onnx.save": "onnx"}
MODULES = sorted(
    m.name for m in pkgutil.walk_packages(treepie.__path__, "treepie.") if "examples" not in m.name
)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def run(code, namespace):
    exec(compile(code, "README.md", "exec"), namespace)


@pytest.fixture
def mnist(monkeypatch):
    """Let `tp.datasets.mnist()` return MNIST where it is, else the digits of the package in the same form."""
    if MNIST.is_dir():
        monkeypatch.setattr(
            treepie.datasets, "mnist", lambda original=treepie.datasets.mnist: original(MNIST)
        )
        return

    def large(split):
        x, y = split
        return np.pad(np.kron(x.numpy().reshape(-1, 8, 8), np.ones((3, 3))), [(0, 0), (2, 2), (2, 2)]), y

    monkeypatch.setattr(treepie.datasets, "mnist", lambda: tuple(map(large, treepie.datasets.digits())))


@pytest.mark.filterwarnings("ignore:precision. this CPU:RuntimeWarning")  # which has no bfloat16
@pytest.mark.parametrize("block", blocks("python")[1:], ids=range(1, len(blocks("python"))))
def test_readme_python(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for package in ("onnx", "onnxruntime", "sklearn"):
        if f"{package}." in block:
            pytest.importorskip(package)
    run(block, {"__name__": "readme"})


def test_readme_first_example_learns(mnist, capsys):
    run(blocks("python")[0], {"__name__": "readme"})
    assert blocks("python")[0].strip().count("\n") == 11
    scores = ast.literal_eval(capsys.readouterr().out)
    assert scores["accuracy"] > (0.965 if MNIST.is_dir() else 0.85)


def tables():
    """Heading -> the code of each row's second cell, of the tables of idioms of other libraries."""
    part = README.read_text(encoding="utf-8").split("## Coming from another library\n")[1].split("\n## ")[0]
    found = {}
    for section in part.split("\n### ")[1:]:
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("|")]
        found[section.splitlines()[0]] = [row[1].strip() for row in rows[2:]]
    return found


@pytest.mark.parametrize("library", tables())
def test_readme_idioms_run_one_after_another(library, tmp_path, monkeypatch):
    setup = next(b for b in blocks("python") if "(a, b), (a_test, b_test)" in b)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "readme"}
    run(setup, namespace)
    before = treepie.get_num_threads()
    cells = [re.match("`([^`]+)`", cell) for cell in tables()[library]]
    code = [cell[1] for cell in cells if cell and not cell[1].endswith("=")]
    assert len(code) >= len(cells) - 2 >= 10
    try:
        for line in code:
            run(line, namespace)
    finally:
        treepie.set_num_threads(before)


def test_readme_names_files_that_exist():
    text = README.read_text(encoding="utf-8")
    files = re.findall(r"`((?:api|autodiff|kernels|tests|perf|\.ci)/[\w/.]*)`", text)
    assert len(files) > 30
    assert [f for f in files if not (README.parent / f).exists()] == []
    walk = re.findall(r"^\| `((?:api|autodiff|kernels)/[\w/.]*)` \|", text, re.MULTILINE)
    assert (walk[0], walk[-1]) == ("api/train/trainer.py", "kernels/program.py")
    assert len(walk) <= 15


def test_readme_claims_what_its_tables_say():
    text = README.read_text(encoding="utf-8")
    low, high = map(float, re.search(r"is ([\d.]+) to ([\d.]+) times as fast", text).groups())
    table = text.split("<!-- perf/train.py -->")[1].split("<!-- end -->")[0]
    ratios = [float(line.split("|")[-2]) for line in table.splitlines() if line.startswith("| `")]
    assert len(ratios) == 5
    assert (1 / max(ratios), 1 / min(ratios)) == (pytest.approx(low, abs=0.1), pytest.approx(high, abs=0.1))
    rules = int(re.search(r"each of the (\d+) gradient rules", text)[1])
    assert rules == sum(row.vjp is not None for row in OPS.values())


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
    if name.startswith("treepie.sklearn"):
        pytest.importorskip("sklearn")
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in Finder().find(importlib.import_module(name)):
        runner.run(test)
    assert runner.failures == 0


def test_docstrings_of_decorated_functions_are_looked_at():
    found = Finder(exclude_empty=False).find(treepie.layer.basic)
    assert "treepie.layer.basic.linear" in {test.name for test in found}


# ---- the reference that `python -m treepie.docs` writes


def entries(name):
    """The names that the reference must have an entry for: functions, classes and constants of a module."""
    return docs.public_names(docs.modules()[name])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    pytest.importorskip("pdoc")
    folder = tmp_path_factory.mktemp("reference")
    code = "import sys; from treepie.docs import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-W", "error", "-c", code, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    return folder


@pytest.mark.parametrize("name", docs.modules())
def test_reference_has_an_entry_with_a_text_for_each_public_name(reference, name):
    page = (reference / f"{name.replace('.', '/')}.html").read_text(encoding="utf-8")
    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.DOTALL))
    assert sorted(sections) == sorted(entries(name))
    for text in sections.values():
        own = re.split(r'class="classattr">', text)[0]
        assert re.search(r'<div class="docstring"><p>[^<\s]', own), own[:400]


def test_reference_has_a_text_for_each_constant():
    values = {n: getattr(module, n) for name, module in docs.modules().items() for n in entries(name)}
    assert {n for n, v in values.items() if isinstance(v, (str, np.dtype))} == set(docs.CONSTANTS)


def test_reference_lists_each_public_module():
    found = {n for n in treepie.__all__ if inspect.ismodule(getattr(treepie, n))}
    assert found == {name for name in docs.SUBMODULES if "." not in name}


def test_reference_shows_arguments_as_a_list_and_examples_as_code():
    text = """Return the mean.

    x: (n, c) float,
        C-ordered.  axis: an `int` < 2.
    Raises ValueError for a wrong axis.
    More of it, by Huber 1964: see https://example.org/a.

    x is not changed: it is *immutable*.
    """
    assert docs.to_html(inspect.cleandoc(text)).split("\n") == [
        "<p>Return the mean.</p>",
        "<dl>",
        "<dt><code>x</code></dt><dd>(n, c) float, C-ordered.</dd>",
        "<dt><code>axis</code></dt><dd>an <code>int</code> &lt; 2.</dd>",
        "<dt>Raises</dt><dd>ValueError for a wrong axis.</dd>",
        "</dl>",
        '<p>More of it, by Huber 1964: see <a href="https://example.org/a">https://example.org/a</a>.</p>',
        "<p>x is not changed: it is *immutable*.</p>",
    ]
    pytest.importorskip("pygments")
    assert '<span class="gp">&gt;&gt;&gt; </span>' in docs.to_html("Example.\n\n>>> 1 + 1\n2")


def test_reference_without_pdoc_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pdoc", None)
    message = docs.main([str(tmp_path / "out")])
    assert message == 'treepie.docs: pdoc is not installed, run pip install "treepie[docs]"'
    assert not (tmp_path / "out").exists()


def test_reference_without_a_folder_says_how_it_is_called(capsys):
    for arguments in ([], ["a", "b"]):
        with pytest.raises(SystemExit):
            docs.main(arguments)
        assert capsys.readouterr().err.startswith("usage: python -m treepie.docs [-h] FOLDER\n")


# ---- every public name has an example


def named():
    """Names of public functions and classes -> the objects; not constants and what constructors return."""
    found = {}
    for module_name, module in docs.modules().items():
        for name in docs.public_names(module):
            value = getattr(module, name)
            if inspect.isroutine(value) or inspect.isclass(value):
                found[f"{module_name.replace('treepie', 'tp', 1)}.{name}"] = value
    return found


@pytest.mark.parametrize("name", named())
def test_public_names_have_a_docstring_with_an_example(name):
    text = named()[name].__doc__ or ""
    assert text.strip()
    assert ">>> " in text
