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
    if options.shared:
        cache.move(str(Path(options.shared).absolute()))
        if cache.primary().problem:
            parser.error(f"warmup: {options.shared} cannot be shared: {cache.primary().problem}")
    try:
        print(warmup(dtypes))
    except OSError as error:
        parser.error(f"warmup: {error}")
    if options.shared:
        cache.share()
        print(f"for all users, on CPUs like this one ({config.cpu()[0]}): ", end="")
        print(f"export TREEPIE_CACHE_DIR={config.CACHE_DIR}")


if __name__ == "__main__":
    main()
