"""The machine and the versions that the library runs on."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path

from treepie.kernels import cache, config, threads
from treepie.kernels.compilations import compilations

from .display import counted


@dataclass(frozen=True, repr=False)
class CacheInfo:
    """The kernel cache of this process, as `tp.cache_info` returns it.

    folder: the folder that kernels are read from; None where they stay in memory.
    writable: whether kernels that it lacks are stored there.
    fallback: where they are stored otherwise: the user's own folder, when that of TREEPIE_CACHE_DIR is
        read-only; None where they stay in memory.
    entries, bytes: the number of kernels in `folder` for this CPU and these versions, and their size.
    compiled, loaded: how many kernels this process has compiled, and how many it has read from disk.
    reason: why new kernels stay in memory; "" where they are stored.
    """

    folder: Path | None
    writable: bool
    fallback: Path | None
    entries: int
    bytes: int
    compiled: int
    loaded: int
    reason: str

    def __repr__(self) -> str:
        """Return folder, content and use in words."""
        words = [str(self.folder)] if self.folder else []
        if self.folder and not self.writable:
            words.append(f"read-only, new kernels go to {self.fallback}" if self.fallback else "read-only")
        if self.reason:
            words.append(f"new kernels stay in memory: {self.reason}")
        if self.folder:
            words.append(f"{counted(self.entries, 'kernel')} of {self.bytes / 1e6:.1f} MB")
        words.append(f"{self.compiled} compiled and {self.loaded} loaded in this process")
        return f"CacheInfo({'; '.join(words)})"


def cache_info() -> CacheInfo:
    """Return where compiled kernels are kept, how many there are, and what this process did.

    >>> import treepie as tp
    >>> info = tp.cache_info()
    >>> info.compiled >= 0
    True
    """
    (folder, problem), (_, reason) = cache.primary(), cache.store()
    sizes = cache.sizes()
    return CacheInfo(
        folder,
        folder is not None and not problem,
        cache.folder() if problem else None,
        len(sizes),
        sum(sizes),
        compilations.count,
        compilations.loaded,
        reason,
    )


def show_config() -> None:
    """Print the CPU, its vector width, the threading layer, the cache folder and the versions.

    >>> import treepie as tp
    >>> tp.show_config()  # doctest: +ELLIPSIS
    treepie ...
    """
    rows = {
        "treepie": config.__version__,
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("numpy", "numba", "llvmlite")},
        "CPU": config.cpu()[0],
        "vector width": f"{8 * config.vector_bytes()} bits",
        "threads": f"{threads.get_num_threads()} ({threads.layer()})",
        "kernel cache": _where(cache_info()),
    }
    for name, value in rows.items():
        print(f"{name:<13} {value}")


def _where(info: CacheInfo) -> str:
    """Say where kernels are read from, and where new ones go."""
    if info.writable:
        return str(info.folder)
    new = f"new kernels go to {info.fallback}" if info.fallback else f"kernels stay in memory: {info.reason}"
    return f"{info.folder} (read-only), {new}" if info.folder else f"none, {new}"
