"""The kernel cache on disk: object code, keyed by everything it depends on.

The key covers every source file of this package, the versions of treepie, Numba, llvmlite, NumPy and Python,
and the CPU's name and features; what kernels call outside of it is in their names (see `digest.py`). An edit
or an upgrade can not leave a stale kernel behind.

Object code runs with the rights of the process that loads it. So folders and entries must belong to this user
or to root, and nobody else may write to them. A folder that cannot be used raises no error: kernels then stay
in memory, with one warning.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite
import llvmlite.binding as llvm
import numpy as np

from . import config
from .frames import warn

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: every process compiles what it lacks
    fcntl = None

#: The value of TREEPIE_CACHE_DIR with which kernels stay in memory, without a warning.
OFF = "off"

_DIGEST = hashlib.sha256().digest_size

#: A FIFO must not block. Windows has no FIFOs in folders, and translates line ends without O_BINARY.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

#: Seconds after which a temporary file is one of a process that was killed: writing takes milliseconds.
_LEFTOVER_AGE = 3600

#: Seconds after which a process compiles a kernel that another one should have compiled: it may be stopped.
#: A kernel takes 0.3 to 1 s, and the processes that wait for it need no core.
_PATIENCE = 30.0

#: Seconds between two looks at a lock, at first and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.02


class Folder(NamedTuple):
    """A folder of this key's kernels: None where none can be read, and why it cannot be written to, or ''."""

    path: Path | None
    problem: str


def primary() -> Folder:
    """Return the folder of TREEPIE_CACHE_DIR, by default the user's."""
    return _open(config.CACHE_DIR)


def store() -> Folder:
    """Return the folder that new kernels go to: the user's, where that of TREEPIE_CACHE_DIR is read-only."""
    first = primary()
    return _open(None) if first.path and first.problem else first


def folder() -> Path | None:
    """Return the path of the folder that new kernels go to, None if they stay in memory."""
    path, problem = store()
    return None if problem else path


def user_folder() -> Path:
    """Create and return the user's cache folder by the platform's rules, or raise OSError without a home."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not base or base.startswith("~"):
        raise OSError("no home folder")
    path = Path(base) / "treepie"
    _make(path)
    return path


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


def read(name: str) -> bytes | None:
    """Return the object code cached under `name`, or None if there is none or it is damaged."""
    code = _stored(primary().path, name)
    if code is None and store() is not primary():
        code = _stored(store().path, name)
    return code


def write(name: str, code: bytes) -> None:
    """Cache object code under `name`; the write is atomic."""
    path, problem = store()
    if path is None or problem:
        _warn(problem)
        return
    _remove_leftovers(path)
    try:
        descriptor, temporary = tempfile.mkstemp(prefix="tmp", dir=path)
        try:
            with open(descriptor, "wb") as file:
                file.write(_digest(name, code) + code)
            os.replace(temporary, path / f"{name}.o")
        finally:
            Path(temporary).unlink(missing_ok=True)  # after an error or an interrupt
    except OSError as error:
        _warn(f"{path}: {error.strerror}")


@contextlib.contextmanager
def compiling(name: str) -> Iterator[None]:
    """Let one process at a time compile a kernel; the others find it in the cache afterwards.

    A lock ends with its holder. Where the file system has no locks, and where the holder takes more than
    `_PATIENCE`, a process goes on without it: kernels are then compiled twice, which does no harm. Kernels
    that need each other are locked in the order of their needs, so that no two processes wait for each other.
    """
    path, problem = store()
    if fcntl is None or path is None or problem:
        yield
        return
    # One byte of one file for each kernel. A process has these locks, not a descriptor: closing one would
    # release those of all kernels, so it stays open.
    place, descriptor, locked = _place(name), -1, False
    try:
        with contextlib.suppress(OSError):
            descriptor = _lock_file(path)
            locked = _lock(descriptor, place)
        yield
    finally:
        if locked:
            with contextlib.suppress(OSError):
                fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, place)


def _place(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")


def _lock(descriptor: int, place: int) -> bool:
    """Lock a byte, and return whether that took less than `_PATIENCE`; OSError where there are no locks."""
    end, pause = time.monotonic() + _PATIENCE, _FIRST_PAUSE
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            return True
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, by the system: another process has it
            if time.monotonic() > end:
                return False
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


_lock_files: dict[Path, int] = {}


def _lock_file(path: Path) -> int:
    """Return a descriptor of the file of locks in a folder, which stays open."""
    descriptor = _lock_files.get(path)
    if descriptor is None or not os.fstat(descriptor).st_nlink:  # the folder was removed meanwhile
        descriptor = _lock_files[path] = os.open(path / "locks", os.O_RDWR | os.O_CREAT, 0o600)
    return descriptor


def sizes() -> list[int]:
    """Return the sizes, in bytes, of the kernels in the primary folder."""
    path, _ = primary()
    try:
        return [file.stat().st_size for file in path.glob("*.o")] if path else []
    except OSError:  # removed meanwhile
        return []


def move(root: str | None) -> None:
    """Use another folder, as TREEPIE_CACHE_DIR names it."""
    config.CACHE_DIR = root
    _open.cache_clear()


def share() -> None:
    """Let all users read the folder that new kernels go to, and the kernels in it."""
    path = folder()
    if path is not None:
        for each in (path.parent, path):
            each.chmod(0o755)
        for file in path.glob("*.o"):
            file.chmod(0o644)
        (path / "locks").unlink(missing_ok=True)  # which this user alone needs


@functools.cache
def _open(root: str | None) -> Folder:
    """Return the folder of this key's kernels below `root`, by default the user's; make it if it can be."""
    if root == OFF:
        return Folder(None, f"TREEPIE_CACHE_DIR is {OFF!r}")
    try:
        top = Path(root).absolute() if root else user_folder()
        path = top / key()
        _make(top)
        _require_trust(top)
        if os.access(top, os.W_OK):
            _make(path)
        if os.path.exists(path):
            _require_trust(path)
    except OSError as error:
        return Folder(None, str(error))
    return Folder(path, "" if os.access(path, os.W_OK) else f"{path} is read-only")


def _make(path: Path) -> None:
    """Make a folder, and those that it is in, for this user alone."""
    try:
        path.mkdir(0o700, exist_ok=True)
    except FileNotFoundError:
        _make(path.parent)
        path.mkdir(0o700, exist_ok=True)


def _require_trust(path: Path) -> None:
    """Raise OSError unless a path is a folder that only this user or root may write to."""
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(f"{path} is not a folder")
    if distrust := _distrust(status):
        raise OSError(f"{path} {distrust}: its kernels may be forged")


def _distrust(status: os.stat_result) -> str:
    """Return what lets somebody else write to a file or folder, '' if nothing does."""
    if not hasattr(os, "geteuid"):
        return ""  # Windows keeps a user's folders private by access lists, which modes do not show
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to another user, number {status.st_uid}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "may be written to by its group or by all users (chmod go-w changes that)"
    return ""


def _stored(path: Path | None, name: str) -> bytes | None:
    """Return the code of an entry of a folder, None if it is not a whole and trusted file."""
    if path is None:
        return None
    try:
        descriptor = os.open(path / f"{name}.o", _READ)
    except OSError:
        return None
    try:
        # An entry may be older than the folder's mode, and somebody may have replaced the folder meanwhile.
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or _distrust(status):
            return None
        stored = os.read(descriptor, status.st_size)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    # The linker would crash, instead of raising, on a truncated file or on one of another name.
    code = stored[_DIGEST:]
    return code if stored[:_DIGEST] == _digest(name, code) else None


def _digest(name: str, code: bytes) -> bytes:
    digest = hashlib.sha256(f"{key()}\0{name}\0".encode())
    digest.update(code)
    return digest.digest()


@functools.cache
def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of processes that were killed while they wrote, once in this process."""
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            temporary = entry.name.startswith("tmp") and not entry.name.endswith(".o")
            if temporary and time.time() - entry.stat(follow_symlinks=False).st_mtime > _LEFTOVER_AGE:
                with contextlib.suppress(OSError):  # another process was faster
                    os.unlink(entry.path)


@functools.cache
def _warn(problem: str) -> None:
    if config.CACHE_DIR != OFF:
        warn(
            f"treepie keeps compiled kernels in memory only ({problem}): every process compiles them again. "
            f"Set TREEPIE_CACHE_DIR to a folder that you alone may write to, or to {OFF!r}."
        )
