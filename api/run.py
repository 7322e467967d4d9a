"""The launcher: `python -m treepie.run -n 4 train.py` starts 4 processes that train together.

It finds the launcher of the MPI that mpi4py uses (on PATH, or that of the wheel in this environment), shares
the cores out, sets what this MPI needs, and passes signals and the exit status on. Where a process has
vanished, or has failed before MPI noticed, it ends the others.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from treepie.kernels import config

#: Seconds between two looks at the processes, and those in which the MPI's launcher should end a job by
#: itself, first without a signal, then after one.
_PAUSE, _TIME_TO_NOTICE, _TIME_TO_END = 0.1, 2.0, 3.0


def main(arguments: list[str] | None = None) -> int:
    """Start the processes; return the exit status of the job."""
    parser = argparse.ArgumentParser("python -m treepie.run", description=__doc__)
    parser.add_argument("-n", type=int, help="how many processes; by default one for each core")
    parser.usage = "python -m treepie.run [-h] [-n N] (script | -m module | -c code) [arguments]"
    words = sys.argv[1:] if arguments is None else arguments
    own = 0
    while own < len(words) and words[own] in ("-h", "--help", "-n"):
        own += 2 if words[own] == "-n" else 1
    options, script = parser.parse_args(words[:own]), words[own:]
    if not script or script in (["-m"], ["-c"]):
        parser.error("there is no script, expected a Python file, -m and a module, or -c and code")
    n = config.cores() if options.n is None else options.n
    if n < 1:
        parser.error(f"-n is {n}, expected at least 1")
    launcher = find_launcher()
    if launcher is None:
        parser.error('no mpiexec is on PATH or in this environment: pip install "treepie[mpi]"')
    open_mpi = _is_open_mpi(launcher)
    with tempfile.TemporaryDirectory(prefix="treepie-") as folder:
        env = environment(n, open_mpi) | {"TREEPIE_RUN_FOLDER": folder}
        start = [*command(launcher, n, open_mpi), sys.executable, "-m", "treepie.distributed.script", *script]
        job = Job(subprocess.Popen(start, env=env), Path(folder), open_mpi)
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGINT)):
            signal.signal(number, job.pass_on)
        status = job.wait()
        unfinished = sorted(os.listdir(folder))
    if status == 0 and unfinished:
        print(f"treepie.run: {', '.join(unfinished)} ended before Python did", file=sys.stderr)
        return 1
    return status if status >= 0 else 128 - status


class Job:
    """A launcher that runs, and its ranks on this machine.

    folder: has a file for each rank, with its process number, from when it begins until Python ends.
    open_mpi: whether the launcher ends all ranks on SIGTERM, where others pass it on.
    """

    def __init__(self, launcher: subprocess.Popen[Any], folder: Path, open_mpi: bool) -> None:
        self._launcher, self._folder, self._open_mpi = launcher, folder, open_mpi
        self._signals: set[int] = set()

    def processes(self) -> list[int]:
        """Return the numbers of the ranks' processes that have begun and not ended as they should."""
        numbers = []
        for file in self._folder.iterdir():
            with contextlib.suppress(OSError, ValueError):  # removed, or not written yet
                numbers.append(int(file.read_text(encoding="ascii")))
        return numbers

    def pass_on(self, number: int, _: Any) -> None:
        """Pass a signal on: to the launcher, or to the ranks of one that would end them instead."""
        if number == signal.SIGINT and _reaches_the_launcher():
            return
        ranks = self.processes() if self._open_mpi and number == signal.SIGTERM else []
        if ranks and number not in self._signals:
            self._signals.add(number)
            _send(ranks, number)
        else:  # again: it is meant to end them
            self._launcher.send_signal(number)

    def wait(self) -> int:
        """Return the launcher's exit status; end it where a rank has vanished and the others go on."""
        vanished = 0.0
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._launcher.wait(_PAUSE)
                break
            now = time.monotonic()
            if all(map(_is_alive, self.processes())):
                vanished = 0.0
            elif not vanished:
                vanished = now
            elif now - vanished > _TIME_TO_NOTICE:
                status = self._end()
                break
        _send(self.processes(), getattr(signal, "SIGKILL", signal.SIGTERM))
        return status

    def _end(self) -> int:
        self._launcher.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._launcher.wait(_TIME_TO_END)
        _send(self.processes(), getattr(signal, "SIGKILL", signal.SIGTERM))
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._launcher.wait(_TIME_TO_END) or 1
        self._launcher.kill()
        return self._launcher.wait()


def _send(processes: list[int], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # where os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _reaches_the_launcher() -> bool:
    """Return whether Ctrl-C reaches the launcher too, from the terminal whose foreground both are in."""
    try:
        return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    except (AttributeError, OSError):  # Windows, or no terminal
        return False


def find_launcher() -> Path | None:
    """Return mpiexec of this environment, or else the one on PATH."""
    own = Path(sysconfig.get_path("scripts")) / ("mpiexec.exe" if os.name == "nt" else "mpiexec")
    if own.exists():
        return own
    found = shutil.which("mpiexec") or shutil.which("mpirun")
    return Path(found) if found else None


def _is_open_mpi(launcher: Path) -> bool:
    done = subprocess.run([launcher, "--version"], capture_output=True, text=True, check=False)
    text = done.stdout.lower()
    return any(name in text for name in ("open mpi", "openmpi", "prrte"))


def command(launcher: Path, n: int, open_mpi: bool) -> list[str]:
    """Return the command that starts n processes, up to the program."""
    if open_mpi:
        # Processes may outnumber cores, and share them as the system likes: threads are counted per process.
        return [str(launcher), "--oversubscribe", "--bind-to", "none", "-n", str(n)]
    return [str(launcher), "-n", str(n)]


def environment(n: int, open_mpi: bool) -> dict[str, str]:
    """Return the environment of the processes."""
    env = config.environment()
    env.setdefault("NUMBA_NUM_THREADS", str(max(config.cores() // n, 1)))
    if hasattr(os, "geteuid") and os.geteuid() == 0 and open_mpi:
        # In a container root is the usual user; Open MPI asks for both of these.
        env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return env


if __name__ == "__main__":
    sys.exit(main())
