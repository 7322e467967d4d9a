"""Files that a crash can not break: safetensors files, and what is put into place in one step.

Everything is written into a folder of its own beside the target, checked by reading it again, flushed to
the disk and then renamed. No file here is a pickle.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

Arrays = dict[str, NDArray[Any]]

#: What safetensors files may hold. bfloat16 is read as the upper halves of float32.
_DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"},
    **{"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1"},
}

#: Seconds after which another machine's unfinished work is taken for abandoned.
_ABANDONED = 86_400.0

#: Names of the folders that unfinished work is in: the machine, its process, a random number.
_MACHINE = re.sub(r"[^\w-]", "-", platform.node()) or "unknown"
_WORKSHOP = re.compile(r"\..+\.([\w-]+)\.(\d+)\.[0-9a-f]{8}\.treepie-part")

#: Those in use by this process.
_open: set[str] = set()


class Damaged(ValueError):
    """A file that does not hold what was written into it."""


# ---- safetensors
def read(function: str, path: Path) -> Arrays:
    """Return the arrays of a safetensors file by name, float16 and bfloat16 as float32.

    They are views of the file, to be copied before anything else is done.

    Raises FileNotFoundError, and Damaged with the name and the file where it is cut, or where an array's
    checksum, if the file has one, is another.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{function}: {path} {what}, expected a safetensors file")
    try:
        with safe_open(path, "np"):  # which checks the header and the length
            pass
    except SafetensorError as error:
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


def _array(function: str, path: Path, name: str, entry: dict[str, Any], raw: NDArray[Any]) -> NDArray[Any]:
    kind = entry["dtype"]
    if kind not in _DTYPES:
        raise TypeError(f"{function}: {name!r} in {path} is {kind}, expected one of {', '.join(_DTYPES)}")
    flat: NDArray[Any] = np.frombuffer(raw, _DTYPES[kind])
    if kind == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return (flat.astype(np.float32) if kind == "F16" else flat).reshape(entry["shape"])


def write(function: str, path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a safetensors file and read it again.

    safetensors 0.8.0 stores the memory of an array as it lies there, which for one that is not C-contiguous
    is not what the array holds.
    """
    ready = {name: np.asarray(x, order="C") for name, x in arrays.items()}
    sums = {name: zlib.crc32(x.reshape(-1).view(np.uint8).data) for name, x in ready.items()}
    path.touch()
    mode = path.stat().st_mode  # what the user's umask allows; safetensors' own files are for the user alone
    notes = {"treepie.crc32": json.dumps(sums)} if sums else None  # safetensors 0.4 can not read notes alone
    try:
        safetensors.numpy.save_file(ready, path, notes)
    except SafetensorError as error:
        raise OSError(f"{function}: {path} could not be written: {error}") from error
    path.chmod(mode)
    if read(function, path).keys() != ready.keys():
        raise Damaged(f"{function}: {path} does not hold the arrays that were written into it")


# ---- in one step
@contextlib.contextmanager
def workshop(target: Path) -> Iterator[Path]:
    """Give a new folder beside the target to make it in; what is left there is removed at the end.

    So is what a process that was killed has left beside the target.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(".*.treepie-part"):
        if _abandoned(left):
            # It may be another user's, or another process is faster: neither is a reason to save nothing.
            shutil.rmtree(left, ignore_errors=True)
    folder = target.parent / f".{target.name}.{_MACHINE}.{os.getpid()}.{uuid.uuid4().hex[:8]}.treepie-part"
    _open.add(folder.name)
    try:
        folder.mkdir()
        yield folder
    finally:
        _open.discard(folder.name)
        if folder.exists():
            shutil.rmtree(folder)


def put(made: Path, target: Path) -> None:
    """Flush a file or folder to the disk, and rename it to a target in the same file system."""
    for path in [*made.iterdir(), made] if made.is_dir() else [made]:
        flush(path)
    os.replace(made, target)
    flush(target.parent)


def flush(path: Path) -> None:
    """Have a file or folder written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _abandoned(folder: Path) -> bool:
    """Whether a workshop's process is gone; on another machine, whether the workshop is a day old."""
    named = _WORKSHOP.fullmatch(folder.name)
    if named is None or folder.name in _open:
        return False
    machine, process = named[1], int(named[2])
    if machine != _MACHINE:
        with contextlib.suppress(FileNotFoundError):  # finished at this moment
            return time.time() - folder.stat().st_mtime > _ABANDONED
        return False
    if process == os.getpid():  # whose number an earlier process had
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's, and alive
        return False
    return False
