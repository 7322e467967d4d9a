"""Processes and folders of the tests of the kernel cache."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

from treepie.kernels import native

USE = "import treepie as tp; print((tp.tensor([1.0, 2.0]) + 1.0).tolist())"
COUNT = "\nfrom treepie.kernels.compilations import compilations\nprint(compilations.count)"

NOBODY = 65534
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0

#: In a child: `answer(name, value)` compiles or loads a function, and calls it.
ANSWER = """
import ctypes
from treepie.kernels import cache, native
def answer(name, value):
    text = f"define i64 @{name}() {{ ret i64 {value} }}"
    return ctypes.CFUNCTYPE(ctypes.c_int64)(native.load(name, lambda: text))()
"""

#: Lets a child of root go on as another user, once it has imported what only root may read.
AS_NOBODY = f"""
import os, treepie as tp
from treepie.kernels import cache, native
from treepie.kernels.compilations import compilations
cache.key(), native._engine(), tp.get_num_threads()
if os.geteuid() == 0:
    os.setgid({NOBODY}), os.setuid({NOBODY})
"""


def run(code, folder, timeout=None, **env):
    """Run Python code in a fresh process with a cache folder; return (stdout, stderr)."""
    full = {**os.environ, "TREEPIE_CACHE_DIR": str(folder), **env}
    full = {k: v for k, v in full.items() if v is not None}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=full, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def answer(name, value):
    """Load the function `name`, or compile it to return a value, as a new process would; and call it."""
    native._addresses.pop(name, None)
    text = f"define i64 @{name}() {{ ret i64 {value} }}"
    return ctypes.CFUNCTYPE(ctypes.c_int64)(native.load(name, lambda: text))()


def objects(folder):
    return sorted(Path(folder).rglob("*.o"))


def names(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != "locks")


def modes(path, below):
    """Return the modes of a path and of the folders that it is in, up to one."""
    return {oct(p.stat().st_mode & 0o777) for p in (path, *path.parents) if p.is_relative_to(below)}


def chown(path):
    """Give a file or folder to another user."""
    os.chown(path, NOBODY, NOBODY)
