"""The command line: `python -m treepie info`, `warmup` and `plot`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from treepie.kernels import cache, config

from .machine import show_config
from .plot import pyplot
from .train.history import History
from .warmup import warmup


def main(arguments: list[str] | None = None) -> None:
    """Run a command."""
    parser = argparse.ArgumentParser("python -m treepie", description="treepie on this machine")
    parser.add_argument("--version", action="version", version=f"treepie {config.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_info(commands)
    _add_warmup(commands)
    _add_plot(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except options.errors as error:
        parser.error(f"{options.command}: {error}")


def _add(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], None],
    help: str,
    errors: tuple[type[Exception], ...] = (OSError,),
) -> Any:
    """Add a command, and return its parser. errors: those that are shown without a traceback."""
    command = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    command.set_defaults(run=run, errors=errors)
    return command


# ---- info
def _add_info(commands: Any) -> None:
    help = "print the CPU, the threads, the cache folder and the versions"
    _add(commands, "info", lambda options: show_config(), help)


# ---- warmup
def _add_warmup(commands: Any) -> None:
    command = _add(commands, "warmup", _warmup, "compile kernels into the cache folder, ahead of a job")
    command.add_argument("dtypes", nargs="*", type=_dtype, help="float32 (by default), float64")
    command.add_argument("--dtype", nargs="+", type=_dtype, default=[], help="the same")
    command.add_argument("--shared", metavar="DIR", help="compile into a folder that all users can read")


def _dtype(name: str) -> str:
    if name not in ("float32", "float64"):
        raise argparse.ArgumentTypeError(f"a dtype is {name!r}, expected float32 or float64")
    return name


def _warmup(options: argparse.Namespace) -> None:
    dtypes = [*options.dtypes, *options.dtype] or ["float32"]
    if options.shared:
        _share(Path(options.shared).absolute())
    print(warmup(dtypes))
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


# ---- plot
def _add_plot(commands: Any) -> None:
    help = "draw the losses and scores of a run"
    command = _add(commands, "plot", _plot, help, (OSError, ValueError, ImportError))
    file = "run/history.jsonl of fit(history=tp.History('run/history.jsonl')) or History.save, "
    file += "a file of tp.callback.csv, or a folder of checkpoints of Trainer.fit"
    command.add_argument("file", metavar="FILE", type=Path, help=file)
    image = "a .png, .svg or .pdf file; by default FILE with .png"
    command.add_argument("-o", "--output", metavar="IMAGE", type=Path, help=image)


def _plot(options: argparse.Namespace) -> None:
    history = History.load(options.file)
    output = options.output or options.file.with_suffix(".png")
    pyplot().switch_backend("agg")  # draws into files, and needs no display
    figure = history.plot()[0].figure
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    print(f"{output}: {history!r}")


if __name__ == "__main__":
    main()
