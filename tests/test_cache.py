"""The kernel cache: keyed by all that matters, and never in the way."""

import sys
from pathlib import Path

import pytest

from treepie.kernels import cache, native

from .caching import COUNT, USE, objects, run


def test_a_second_process_compiles_nothing(tmp_path):
    first, _ = run(USE + COUNT, tmp_path)
    again, _ = run(USE + COUNT, tmp_path)
    assert first.split() == ["[2.0,", "3.0]", "2"]  # the add, and the loop that walks programs
    assert again.split() == ["[2.0,", "3.0]", "0"]


def test_a_damaged_file_is_compiled_again(tmp_path):
    run(USE, tmp_path)
    for file in objects(tmp_path):
        file.write_bytes(file.read_bytes()[:-7])
    out, err = run(USE + COUNT, tmp_path)
    assert out.splitlines() == ["[2.0, 3.0]", "2"]
    assert "Warning" not in err  # a slow machine reports that it compiles


@pytest.mark.parametrize("what", ["numba", "llvmlite", "numpy", "treepie", "python", "cpu", "source"])
def test_the_key_covers(what, monkeypatch, tmp_path):
    def key():
        cache.key.cache_clear()
        return cache.key()

    before = key()
    assert key() == before
    if what == "numba":
        monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
    elif what in ("llvmlite", "numpy"):
        monkeypatch.setattr(f"{what}.__version__", "0.0")
    elif what == "treepie":
        monkeypatch.setattr("treepie.kernels.config.__version__", "0.0")
    elif what == "python":
        monkeypatch.setattr(sys, "version", "0.0")
    elif what == "cpu":
        monkeypatch.setattr("treepie.kernels.config.cpu", lambda: ("generic", "+sse2"))
    else:
        for file in Path(cache.__file__).parent.glob("*.py"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        helper = tmp_path / "rows.py"
        helper.write_text(helper.read_text() + "\n# edited\n")
        monkeypatch.setattr("treepie.kernels.cache.files", lambda package: tmp_path)
    assert key() != before
    monkeypatch.undo()
    assert key() == before


def test_formulas_from_anywhere_have_their_code_in_their_name():
    """Two formulas under one name do not share a compiled function."""
    import numpy as np

    from treepie.kernels.elementwise import elementwise
    from treepie.kernels.program import LaunchTable, Operand, Spec

    x, out = np.arange(3.0), np.empty(3)
    spec = Spec(x.shape, x.dtype)
    for formula, want in [(lambda a: a + 1.0, x + 1), (lambda a: a + 2.0, x + 2)]:
        launch = elementwise("twin", formula, [Operand(0, spec)], [Operand(1, spec)])
        assert LaunchTable([launch]).run([x.ctypes.data, out.ctypes.data]) == -1
        np.testing.assert_array_equal(out, want)


UNUSABLE = {
    "a file in the way": lambda p: p.write_text("") or {"TREEPIE_CACHE_DIR": str(p)},
    "no home": lambda p: {
        "TREEPIE_CACHE_DIR": None,
        "HOME": None,
        "XDG_CACHE_HOME": str(p / ("x" * 300)),
    },
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_unusable_folder_gives_one_warning_and_kernels_in_memory(case, tmp_path):
    env = UNUSABLE[case](tmp_path / "folder")
    out, err = run(USE + "\nprint((tp.tensor([3.0]) * 2.0).item())", tmp_path, **env)
    assert out == "[2.0, 3.0]\n6.0\n"
    assert err.count("keeps compiled kernels in memory only") == 1


def test_the_users_cache_folder_is_the_default(tmp_path):
    run(USE, tmp_path, TREEPIE_CACHE_DIR=None, XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert objects(tmp_path / "xdg" / "treepie")


def test_a_kernel_that_could_raise_is_refused_by_name():
    """Such a call could not be linked, and would end the process."""
    text = """declare i64 @PyErr_Occurred()
    define void @bad(i64 %a) {
      %x = call i64 @PyErr_Occurred()
      ret void
    }"""
    with pytest.raises(RuntimeError, match=r"kernel bad calls \['PyErr_Occurred'\]"):
        native.load("bad", lambda: text)


def test_a_long_compilation_is_announced_in_one_line(tmp_path):
    code = """import treepie as tp, numpy as np
tp.value_and_grad(lambda w: tp.matmul(w, w).sum())(np.ones((64, 64)))"""
    _, err = run(code, tmp_path)
    (line,) = err.splitlines()
    assert line.startswith("treepie: compiling kernels for this CPU (once, then kept in ")
    assert line.endswith(" s")
    _, again = run(code, tmp_path)
    assert again == ""
    _, second = run(code, tmp_path / "second", PMI_RANK="1")  # the first of several ranks says it
    assert second == ""


def test_importing_compiles_nothing_and_does_not_start_numba(tmp_path):
    code = """
import sys, treepie
from treepie.kernels.compilations import compilations
assert compilations.count == 0
assert "numba" not in sys.modules
"""
    run(code, tmp_path)
    assert not objects(tmp_path)
