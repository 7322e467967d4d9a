"""Atomic, checksummed writes of safetensors files and of folders.

Each is written into a temporary folder beside the target, verified by reading it again, flushed to the disk
and then renamed, so that a crash leaves the old content or the new. No file here is a pickle.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import re
import shutil
import time
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

Arrays = dict[str, NDArray[Any]]

#: The dtypes of safetensors files that can be read. bfloat16 is read as the upper half of float32.
_DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"},
    **{"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1"},
}

#: Seconds after which a temporary folder of another machine counts as abandoned.
_ABANDONED = 86_400.0

#: Names of temporary folders: the target, the machine, its process, a random number.
_MACHINE = re.sub(r"[^\w-]", "-", platform.node()) or "unknown"
_TEMPORARY = re.compile(r"\..+\.([\w-]+)\.(\d+)\.[0-9a-f]{8}\.treepie-part")

#: Of Windows: the right to ask for a process's exit code, that of a running one, and the error for none.
_QUERY, _STILL_ACTIVE, _NO_SUCH_PROCESS = 0x1000, 259, 87

#: Temporary folders that this process uses.
_in_use: set[str] = set()


class Damaged(ValueError):
    """A file whose content is not what was written."""


# ---- safetensors
def read(function: str, path: Path) -> Arrays:
    """Return the arrays of a safetensors file by name, float16 and bfloat16 as float32.

    They are views of the memory-mapped file: copy them before it changes.

    Raises FileNotFoundError; Damaged, with the name and the file, for a truncated file and for an array
    whose checksum, if the file has one, does not match.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{function}: {path} {what}, expected a safetensors file")
    try:
        with safe_open(path, "np"):  # which checks the header and the length
            pass
    except SafetensorError as error:
        kind = _other_kind(path)
        if kind:
            raise Damaged(f"{function}: {path} is {kind}, expected a safetensors file") from None
        size = path.stat().st_size
        raise Damaged(
            f"{function}: {path} is damaged or no safetensors file: it has {size} bytes, {error}"
        ) from None
    content = np.memmap(path, np.uint8, "r")
    start = 8 + int(content[:8].view("<u8")[0])
    header = json.loads(content[8:start].tobytes())
    sums = json.loads(header.pop("__metadata__", {}).get("treepie.crc32", "{}"))
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        raw = content[start + begin : start + end]
        if name in sums and zlib.crc32(raw.data) != sums[name]:
            raise Damaged(f"{function}: {name!r} in {path} is damaged, its checksum is wrong")
        arrays[name] = _array(function, path, name, entry, raw)
    return arrays


#: What files of other libraries begin with, and what they are.
_OTHER_KINDS = {
    b"\x80": "a pickle (torch.save wrote such files: write it with safetensors.torch.save_file)",
    b"\x89HDF": "an HDF5 file (as Keras writes them)",
    b"\x93NUMPY": "an array of numpy.save (np.load reads it)",
    b"{": "a JSON file",
}


def _other_kind(path: Path) -> str:
    """Return what a file is that is no safetensors file, "" where its beginning does not tell."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("data.pkl") for name in names):
            return "a file of torch.save (write the state_dict with safetensors.torch.save_file)"
        arrays = any(name.endswith(".npy") for name in names)
        return "an archive of numpy.savez (np.load reads it)" if arrays else "a zip archive"
    with path.open("rb") as file:
        start = file.read(8)
    return next((kind for beginning, kind in _OTHER_KINDS.items() if start.startswith(beginning)), "")


def _array(function: str, path: Path, name: str, entry: dict[str, Any], raw: NDArray[Any]) -> NDArray[Any]:
    kind = entry["dtype"]
    if kind not in _DTYPES:
        raise TypeError(f"{function}: {name!r} in {path} is {kind}, expected one of {', '.join(_DTYPES)}")
    flat: NDArray[Any] = np.frombuffer(raw, _DTYPES[kind])
    if kind == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return (flat.astype(np.float32) if kind == "F16" else flat).reshape(entry["shape"])


#: The dtypes of less precision that floats can be written in.
SMALLER = ("bfloat16", "float16")


def write(function: str, path: Path, arrays: Mapping[str, NDArray[Any]], floats: str | None = None) -> None:
    """Write a safetensors file and verify it by reading it again.

    floats: the dtype of `SMALLER` that floats are rounded to; None for their own.

    safetensors 0.8.0 stores an array's buffer in memory order, so arrays are made C-contiguous first.
    """
    ready = {name: np.asarray(_rounded(x, floats), order="C") for name, x in arrays.items()}
    sums = {name: zlib.crc32(x.reshape(-1).view(np.uint8).data) for name, x in ready.items()}
    path.touch()
    mode = path.stat().st_mode  # by the user's umask; safetensors makes files that only the user may read
    metadata = (
        {"treepie.crc32": json.dumps(sums)} if sums else None
    )  # safetensors 0.4 can not read metadata alone
    try:
        safetensors.numpy.save_file(ready, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{function}: {path} could not be written: {error}") from error
    if floats == "bfloat16":
        _name_bfloat16(path, [name for name, x in arrays.items() if x.dtype.kind == "f"])
    path.chmod(mode)
    if read(function, path).keys() != ready.keys():
        raise Damaged(f"{function}: {path} does not hold the arrays that were written into it")


def _name_bfloat16(path: Path, names: Sequence[str]) -> None:
    """Call the uint16 arrays with these names bfloat16, which safetensors writes of other libraries alone."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    for name in names:
        header[name]["dtype"] = "BF16"
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data is aligned to 8 bytes
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[start:])


def _rounded(x: NDArray[Any], dtype: str | None) -> NDArray[Any]:
    """Return floats rounded to a smaller dtype, to nearest even; bfloat16 as its bits."""
    if dtype is None or x.dtype.kind != "f":
        return x
    with np.errstate(over="ignore"):
        if dtype == "float16":
            return x.astype(np.float16)
        x = x.astype(np.float32)
    bits = x.view(np.uint32)
    number = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    quiet = bits >> 16 | 0x40  # rounding would make an infinity of some NaNs
    return np.where(np.isnan(x), quiet, number).astype(np.uint16)


# ---- atomic replacement
@contextlib.contextmanager
def _naming(function: str, folder: Path) -> Iterator[None]:
    """Name the function and the folder in an error of the system."""
    try:
        yield
    except OSError as error:
        raise type(error)(f"{function}: {folder} can not be written to: {error.strerror}") from None


@contextlib.contextmanager
def temporary_folder(function: str, target: Path) -> Iterator[Path]:
    """Yield a new folder beside the target, to write in; it is removed at the end with its content.

    Those of processes that were killed are removed too. Raises OSError, of the same class, where it can not
    be made.
    """
    with _naming(function, target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    for old in target.parent.glob(".*.treepie-part"):
        if _abandoned(old):
            # It may be another user's, or another process removes it first: neither may prevent a save.
            shutil.rmtree(old, ignore_errors=True)
    folder = target.parent / f".{target.name}.{_MACHINE}.{os.getpid()}.{uuid.uuid4().hex[:8]}.treepie-part"
    _in_use.add(folder.name)
    try:
        with _naming(function, target.parent):
            folder.mkdir()
        yield folder
    finally:
        _in_use.discard(folder.name)
        if folder.exists():
            shutil.rmtree(folder)


def replace(source: Path, target: Path) -> None:
    """Flush a file or folder to the disk, and rename it to a target in the same file system."""
    for path in [*source.iterdir(), source] if source.is_dir() else [source]:
        flush(path)
    os.replace(source, target)
    flush(target.parent)


def flush(path: Path) -> None:
    """Flush a file or folder to the disk; on Windows files alone, where folders can not be opened."""
    if os.name == "nt" and path.is_dir():
        return
    # Windows flushes a descriptor that may write.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # macOS, whose fsync leaves data in the drive's cache
        except (AttributeError, OSError):  # another system, or a file system that does not have it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _abandoned(folder: Path) -> bool:
    """Whether a temporary folder's process is gone; on another machine, whether the folder is a day old."""
    named = _TEMPORARY.fullmatch(folder.name)
    if named is None or folder.name in _in_use:
        return False
    machine, process = named[1], int(named[2])
    if machine != _MACHINE:
        with contextlib.suppress(FileNotFoundError):  # removed at this moment
            return time.time() - folder.stat().st_mtime > _ABANDONED
        return False
    # A folder of this process that it does not use: its process had the same number.
    return process == os.getpid() or not _alive(process)


def _alive(process: int) -> bool:
    """Whether a process of this machine runs; another user's counts as running."""
    if os.name == "nt":
        return _alive_on_windows(process)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _alive_on_windows(process: int) -> bool:
    """Whether a process runs on Windows, where `os.kill(process, 0)` would send it Ctrl-C."""
    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    kernel32.OpenProcess.restype = ctypes.c_void_p
    handle = kernel32.OpenProcess(_QUERY, False, process)
    if not handle:
        # No process has the number; of any other reason, such as a missing right, one does.
        return bool(ctypes.get_last_error() != _NO_SUCH_PROCESS)  # type: ignore[attr-defined,unused-ignore]
    code = ctypes.c_ulong()
    kernel32.GetExitCodeProcess(ctypes.c_void_p(handle), ctypes.byref(code))
    kernel32.CloseHandle(ctypes.c_void_p(handle))
    return code.value == _STILL_ACTIVE
