"""The kernel cache on disk: object code, keyed by everything it depends on.

The key covers every source file of this package, the versions of treepie, Numba, llvmlite, NumPy and Python,
and the CPU's name and features: an edit or an upgrade can not leave a stale kernel behind. An unusable folder
raises
no error: kernels then stay in memory, with one warning.
"""

import functools
import hashlib
import importlib.metadata
import os
import sys
import tempfile
import warnings
from importlib.resources import files
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
import numpy as np

from . import config

_DIGEST = hashlib.sha256().digest_size


def user_folder() -> Path:
    """Return the user's cache folder by the platform's rules, or raise OSError without a home."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not base or base.startswith("~"):
        raise OSError("no home folder")
    return Path(base) / "treepie"


@functools.cache
def key() -> str:
    """Return the hash of everything that compiled kernels depend on."""
    digest = hashlib.sha256()
    sources = [f for f in files(__package__).iterdir() if f.name.endswith(".py")]
    for source in sorted(sources, key=lambda f: f.name):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    versions = (
        config.__version__,
        importlib.metadata.version("numba"),
        llvmlite.__version__,
        np.__version__,
        sys.version,
        llvm.get_process_triple(),
        *config.cpu(),
    )
    digest.update("\0".join(versions).encode())
    return digest.hexdigest()[:24]


@functools.cache
def folder() -> Path | None:
    """Create and return the folder of this key's kernels; None, after a warning, if it is not writable."""
    try:
        root = Path(config.CACHE_DIR) if config.CACHE_DIR else user_folder()
        path = root / key()
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        warnings.warn(
            f"treepie keeps compiled kernels in memory only ({error}): every process compiles them "
            "again. Set TREEPIE_CACHE_DIR to a writable folder.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return path


def read(name: str) -> bytes | None:
    """Return the object code cached under `name`, or None if there is none or it is damaged."""
    path = folder()
    if path is None:
        return None
    try:
        stored = (path / f"{name}.o").read_bytes()
    except OSError:
        return None
    digest, code = stored[:_DIGEST], stored[_DIGEST:]
    # A truncated file would crash the loader instead of raising.
    return code if hashlib.sha256(code).digest() == digest else None


def write(name: str, code: bytes) -> None:
    """Cache object code under `name`; the write is atomic."""
    path = folder()
    if path is None:
        return
    try:
        with tempfile.NamedTemporaryFile(dir=path, delete=False) as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(file.name, path / f"{name}.o")
    except OSError as error:
        warnings.warn(
            f"treepie could not cache the kernel {name} in {path}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
