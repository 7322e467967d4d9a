"""What ends all ranks where one of them fails, from the import of treepie on.

A launcher's processes wait for each other, for ever if one of them ends with a traceback alone: MPI ends a
job where a rank calls MPI_Abort, or dies of a signal. The hooks are there before MPI is, since a rank may
fail in an import while the others wait for it in MPI_Init. A process that no launcher has started has none.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

from treepie.kernels import config

#: Seconds in which the other ranks should exit too, after one has called sys.exit with an error.
_EXIT_TIME = 3.0

#: Seconds by which a rank waits for each rank before it to show an interrupt, longer than that one's end
#: takes where nothing is in its way: Ctrl-C reaches all of them.
_TURN, _LAST_TURN = 0.8, 2.4

#: Seconds in which a launcher should have passed on what a rank has printed: an abort drops the rest.
_TIME_TO_SHOW = 0.5

#: Seconds in which a launcher ends this process once it was told to.
_TIME_TO_END = 1.0

_exit_status: Any = None
_rank = 0


def install(rank: int | None = None) -> None:
    """Install the hooks in a process that a launcher started together with others.

    rank: its number by MPI, once that is known; the hooks are then installed again, where the program has
    replaced one of them meanwhile, or where MPI knows of processes of which the environment does not.
    """
    global _rank
    if not config.is_rank() or (rank is None and config.processes()[1] == 1):
        return
    _rank = config.rank() if rank is None else rank
    if not _is_ours(sys.excepthook):
        sys.excepthook = functools.partial(_end, sys.excepthook)
    if not _is_ours(threading.excepthook):
        threading.excepthook = functools.partial(_end_by_thread, threading.excepthook)
    _install_once()


def _is_ours(hook: Any) -> bool:
    return getattr(hook, "func", None) in (_end, _end_by_thread)


@functools.cache
def _install_once() -> None:
    sys.exit = _noting_status(sys.exit)
    atexit.register(_end_after_exit)
    if config.RUN_FOLDER:
        _note_process(Path(config.RUN_FOLDER))


def abort(status: int) -> NoReturn:
    """End all ranks, with an exit status."""
    with contextlib.suppress(OSError, ValueError):  # a closed pipe or file
        sys.stdout.flush()
        sys.stderr.flush()
    time.sleep(_TIME_TO_SHOW)
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.COMM_WORLD.Abort(status)
        os._exit(status)  # where the library returns
    if not config.started_by_open_mpi():  # whose launcher ends all of them where one exits with an error
        _end_without_mpi(status)
    os._exit(status)


def _end_without_mpi(status: int) -> None:
    """End all ranks before MPI_Init: others would go on without one that exits, and wait for it there."""
    manager = config.process_manager()
    if manager is not None:
        # What MPI_Abort writes, in the protocol of MPICH's and Intel MPI's launchers.
        with contextlib.suppress(OSError):
            os.write(manager, f"cmd=abort exitcode={status}\n".encode())
            time.sleep(_TIME_TO_END)
    number = signal.SIGTERM
    try:
        signal.signal(number, signal.SIG_DFL)
    except ValueError:  # not the main thread
        number = getattr(signal, "SIGKILL", number)
    os.kill(os.getpid(), number)
    time.sleep(_TIME_TO_END)


def _end(previous: Any, kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Show an exception, with the rank, and end all ranks."""
    if not config.is_rank():  # a child of a rank
        previous(kind, error, where)
        return
    interrupted = issubclass(kind, KeyboardInterrupt)
    if interrupted:
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(min(_TURN * _rank, _LAST_TURN))
        if not _is_first_to_show():
            abort(130)
    if previous in (sys.__excepthook__, threading.__excepthook__):
        text = "".join(traceback.format_exception(kind, error, _of_the_script(where)))
        sys.stderr.write("".join(f"[rank {_rank}] {line}\n" for line in text.splitlines()))
    else:  # the program's own
        previous(kind, error, where)
        sys.stderr.write(f"[rank {_rank}] ends all ranks: {kind.__name__}\n")
    abort(130 if interrupted else 1)


def _is_first_to_show() -> bool:
    """Return whether no other rank of this machine has shown an interrupt: slow ones miss their turns."""
    if not config.RUN_FOLDER:
        return True
    try:
        (Path(config.RUN_FOLDER) / "interrupted").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # on another machine, or after the launcher's end
        return True
    return True


def _end_by_thread(previous: Any, arguments: Any) -> None:
    if arguments.exc_type is SystemExit:  # which ends the thread alone
        return
    error = arguments.exc_value or arguments.exc_type()
    show = previous if previous is threading.__excepthook__ else lambda *_: previous(arguments)
    _end(show, arguments.exc_type, error, arguments.exc_traceback)


def _of_the_script(where: TracebackType | None) -> TracebackType | None:
    """Leave out the frames of `python -m treepie.run` around the script."""
    inner = where
    while inner is not None and _is_around(inner.tb_frame):
        inner = inner.tb_next
    return inner or where


def _is_around(frame: FrameType) -> bool:
    own = str(Path(__file__).with_name("script.py"))
    return frame.f_globals.get("__name__") == "runpy" or frame.f_code.co_filename == own


def _noting_status(exit: Any) -> Any:
    """Return sys.exit, which notes an error: Python does not say with which status it exits."""

    @functools.wraps(exit)
    def noting(status: Any = None, /) -> NoReturn:
        global _exit_status
        if threading.current_thread() is threading.main_thread():
            _exit_status = status
        exit(status)
        raise AssertionError

    return noting


def exits_with_error() -> bool:
    """Whether the program has called sys.exit with an error."""
    return _exit_status not in (None, 0, False)


def _end_after_exit() -> None:
    """End all ranks where this one exits with an error and the others do not: they would wait for it."""
    if not exits_with_error() or not config.is_rank():
        return
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        request, end = mpi.COMM_WORLD.Ibarrier(), time.monotonic() + _EXIT_TIME
        while time.monotonic() < end:
            if request.Test():
                return
            time.sleep(0.01)
    abort(_exit_status if isinstance(_exit_status, int) and 0 < _exit_status < 256 else 1)


def _note_process(folder: Path) -> None:
    """Leave a file with this process's number until it ends as it should, for `python -m treepie.run`.

    Some MPIs take os._exit(0) for that.
    """
    file = folder / f"rank {_rank}"
    with contextlib.suppress(OSError):  # on another machine
        file.write_text(str(os.getpid()), encoding="ascii")
        atexit.register(_remove, file)


def _remove(file: Path) -> None:
    if config.is_rank():
        file.unlink(missing_ok=True)
