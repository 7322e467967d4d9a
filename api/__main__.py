"""The command line: `python -m treepie info` and `python -m treepie warmup`."""

from __future__ import annotations

import argparse
from pathlib import Path

from treepie.kernels import cache, config

from .machine import show_config
from .warmup import warmup


def main(arguments: list[str] | None = None) -> None:
    """Run a command."""
    parser = argparse.ArgumentParser("python -m treepie", description="treepie on this machine")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="print the CPU, the threads, the cache folder and the versions")
    warm = commands.add_parser("warmup", help="compile kernels into the cache folder, ahead of a job")
    warm.add_argument("dtypes", nargs="*", help="float32 (by default), float64")
    warm.add_argument("--dtype", nargs="+", default=[], help="the same")
    warm.add_argument("--shared", metavar="DIR", help="compile into a folder that all users can read")
    options = parser.parse_args(arguments)
    if options.command == "info":
        show_config()
        return
    dtypes = [*options.dtypes, *options.dtype] or ["float32"]
    for dtype in dtypes:
        if dtype not in ("float32", "float64"):
            parser.error(f"warmup: a dtype is {dtype!r}, expected float32 or float64")
    try:
        if options.shared:
            _share(Path(options.shared).absolute())
        print(warmup(dtypes))
    except OSError as error:
        parser.error(f"warmup: {error}")
    if options.shared:
        cache.share()
        print(f"for all users, on CPUs like this one ({config.cpu()[0]}): ", end="")
        print(f"export TREEPIE_CACHE_DIR={config.CACHE_DIR}")


def _share(root: Path) -> None:
    """Compile into a folder for all users; raise OSError where that is not possible."""
    # Those above it are for whom the umask lets in; the cache's own are private.
    root.parent.mkdir(parents=True, exist_ok=True)
    cache.move(str(root))
    if problem := cache.primary().problem:
        raise OSError(f"{root} cannot be shared: {problem}")


if __name__ == "__main__":
    main()
