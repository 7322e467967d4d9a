"""A kernel's symbol changes with all that the kernel calls, and with nothing else."""

import json
import os
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from treepie.kernels.digest import digest

from .caching import objects, run

#: A module with a kernel, and one with what the kernel calls.
MODULES = {
    "mine.py": """
        import math
        from typing import NamedTuple
        import numpy as np
        from numba import njit
        from treepie.kernels.compiled import device
        from treepie.kernels.intrinsics import scalar
        from treepie.kernels.kernel import A1, Kernel, kernel
        from treepie.kernels.rows import row_map
        import helpers, other
        from helpers import SCALE, Pair, shift

        TABLE = np.array([1.0, 2.0, 4.0])
        SET = frozenset(["a", "b", "c", "d"])
        UNUSED = 1
        lifted = scalar(lambda x: x + SCALE)
        doubled = row_map("doubled", lambda x: helpers.double(x))

        def sum_of(first):
            @njit
            def total(x):
                return first(x) + 1.0
            return total

        total = sum_of(helpers.first)

        @kernel
        def change(lo: int, hi: int, x: A1, factor: float, out: A1) -> None:
            for i in range(lo, hi):
                out[i] = factor * shift(x[i]) + helpers.OFFSET + TABLE[1] + Pair(1.0, 2.0).b + math.cos(0.0)
                if "a" in SET and 3 in {1, 2, 3}:
                    out[i] += total(x) + lifted(x[i])
            doubled(out, x)

        def symbol():
            return change.symbol((np.dtype("f4"), np.dtype("f4")))
        """,
    "helpers.py": """
        from typing import NamedTuple
        from numba import njit
        from treepie.kernels.compiled import device
        import other

        OFFSET = 3.0
        SCALE = 2.0
        UNUSED = 1

        class Pair(NamedTuple):
            a: float
            b: float = 1.0

        @device
        def shift(x):
            # a comment
            return x + other.ONE

        @njit
        def first(x):
            return x[0]

        def double(x):
            return x + x

        def unused():
            return 1
        """,
    "other.py": "ONE = 1.0\nTWO = 2.0\n",
}

#: Edits of the modules: file, text, its replacement.
EDITS = {
    "a body": ("mine.py", "factor * shift", "factor + shift"),
    "an annotation": ("mine.py", "factor: float", "factor: int"),
    "an array": ("mine.py", "[1.0, 2.0, 4.0]", "[1.0, 3.0, 4.0]"),
    "a formula": ("mine.py", "x + SCALE", "x - SCALE"),
    "a set": ("mine.py", '["a", "b",', '["x", "b",'),
    "a number in another module": ("helpers.py", "SCALE = 2.0", "SCALE = 2.5"),
    "an attribute of a module": ("helpers.py", "OFFSET = 3.0", "OFFSET = 3.5"),
    "a device function in another module": ("helpers.py", "x + other.ONE", "x - other.ONE"),
    "a dispatcher of Numba": ("helpers.py", "x[0]", "x[1]"),
    "options of a dispatcher": ("helpers.py", "@njit", "@njit(error_model='numpy')"),
    "a formula in another module": ("helpers.py", "return x + x", "return x * x"),
    "a class": ("helpers.py", "b: float = 1.0", "b: float = 1.5"),
    "a number two modules away": ("other.py", "ONE = 1.0", "ONE = 1.5"),
    "a call of a library": ("mine.py", "math.cos", "math.sin"),
    "a closure": ("mine.py", "sum_of(helpers.first)", "sum_of(lifted)"),
}

UNRELATED = {
    "a comment": ("helpers.py", "# a comment", "# another\n    # comment"),
    "lines": ("mine.py", "TABLE = ", "\n\n\nTABLE = "),
    "an unused number": ("mine.py", "UNUSED = 1", "UNUSED = 2"),
    "an unused number in another module": ("helpers.py", "UNUSED = 1", "UNUSED = 2"),
    "an unused function": ("helpers.py", "return 1\n", "return 2\n"),
    "an unused attribute": ("other.py", "TWO = 2.0", "TWO = 2.5"),
}


def write(folder, edit=None):
    folder.mkdir()
    for name, text in MODULES.items():
        text = textwrap.dedent(text)
        if edit and edit[0] == name:
            assert text.count(edit[1]) == 1
            text = text.replace(*edit[1:])
        (folder / name).write_text(text)


#: Prints the symbol of the kernel in each of some folders.
SYMBOLS = """
import importlib, json, sys
symbols = []
for folder in sys.argv[1:]:
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    symbols.append(importlib.import_module("mine").symbol())
    sys.path.remove(folder)
    for name in ("mine", "helpers", "other"):
        del sys.modules[name]
print(json.dumps(symbols))
"""


def symbols(folders, seed):
    """Return the symbol of the kernel in each folder, computed by one process with a seed for hashes."""
    env = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", SYMBOLS, *map(str, folders)]
    return json.loads(subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def symbol(tmp_path_factory):
    """The symbol as the modules are, and after each edit."""
    root = tmp_path_factory.mktemp("modules")
    edits = {"unedited": None, **EDITS, **UNRELATED}
    for name, edit in edits.items():
        write(root / name, edit)
    folders = [root / name for name in edits]
    first, again = symbols(folders, 1), symbols(folders[::-1], 2)[::-1]
    assert first == again
    return dict(zip(edits, first, strict=True))


def test_a_symbol_names_kernel_and_dtypes(symbol):
    assert re.fullmatch("change_f4_f4_[0-9a-f]{12}", symbol["unedited"])


@pytest.mark.parametrize("edit", EDITS)
def test_a_kernel_that_an_edit_changes_has_another_symbol(symbol, edit):
    assert symbol[edit] != symbol["unedited"]


@pytest.mark.parametrize("edit", UNRELATED)
def test_an_unrelated_edit_changes_no_symbol(symbol, edit):
    assert symbol[edit] == symbol["unedited"]


def test_an_edited_kernel_is_compiled_again(tmp_path):
    """It ran as it was, since its symbol was its name and the dtypes."""
    (tmp_path / "code").mkdir()
    helper, cache = tmp_path / "code" / "helper.py", tmp_path / "cache"
    (tmp_path / "code" / "mine.py").write_text(
        "from treepie.kernels.kernel import A1, kernel\n"
        "from helper import change\n"
        "@kernel\n"
        "def apply(lo: int, hi: int, x: A1) -> None:\n"
        "    for i in range(lo, hi):\n"
        "        x[i] = change(x[i])\n"
    )
    use = """
import numpy as np, mine
from treepie.kernels.program import LaunchTable, Operand, Spec
x = np.arange(3.0)
launch = mine.apply(3, 0.0, Operand(0, Spec(x.shape, x.dtype)))
assert LaunchTable([launch]).run([x.ctypes.data]) == -1
print(x.tolist())"""
    path = os.pathsep.join([str(tmp_path / "code"), os.environ.get("PYTHONPATH", "")])
    env = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    for formula, want in [("x + 1", [1.0, 2.0, 3.0]), ("x * 2", [0.0, 2.0, 4.0]), ("x + 1", [1.0, 2.0, 3.0])]:
        helper.write_text(
            f"from treepie.kernels.compiled import device\n@device\ndef change(x):\n    return {formula}\n"
        )
        assert run(use, cache, **env)[0] == f"{want}\n"
    assert len([f for f in objects(cache) if f.name.startswith("apply_")]) == 2


def test_values_have_digests_of_their_own():
    values = [0, 0.0, -0.0, False, "0", b"0", None, (), [], {}, (0,), [0], {0: 0}, {0}, range(3), range(4)]
    values += [np.float32(0), np.float64(0), np.zeros(1), np.zeros(2), np.zeros(1, "f4"), np.dtype("f4")]
    values += [len, abs, np.exp, np.log, np.sum, np, int, float, digest, (0, (1, 2)), (0, 1, 2), ((0, 1), 2)]
    assert len({digest(v) for v in values}) == len(values)
    assert [digest(v) for v in values] == [digest(v) for v in values]


def test_recursive_functions_and_values_have_an_end():
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    loop = [1]
    loop.append(loop)
    assert len({digest(even), digest(odd), digest(loop)}) == 3
