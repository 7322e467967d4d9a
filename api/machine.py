"""The machine and the versions that the library runs on."""

from __future__ import annotations

import importlib.metadata
import platform

from treepie.kernels import cache, config, threads


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
        "kernel cache": str(cache.folder() or "none, kernels stay in memory"),
    }
    for name, value in rows.items():
        print(f"{name:<13} {value}")
