"""The launcher: `python -m treepie.run -n 4 train.py` starts 4 processes that train together.

It finds the launcher of the MPI that mpi4py uses (on PATH, or that of the wheel in this environment),
shares the cores out, sets what this MPI needs, and passes the exit status on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from treepie.kernels import config


def main(arguments: list[str] | None = None) -> int:
    """Start the processes; return the exit status of the job."""
    parser = argparse.ArgumentParser("python -m treepie.run", description=__doc__)
    parser.add_argument("-n", type=int, help="how many processes; by default one for each core")
    parser.usage = "python -m treepie.run [-h] [-n N] (script | -m module | -c code) [arguments]"
    given = sys.argv[1:] if arguments is None else arguments
    own = 0
    while own < len(given) and given[own] in ("-h", "--help", "-n"):
        own += 2 if given[own] == "-n" else 1
    options, script = parser.parse_args(given[:own]), given[own:]
    if not script:
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
        start = [*command(launcher, n, open_mpi), sys.executable, *script]
        process = subprocess.Popen(start, env=env)
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGINT)):
            signal.signal(number, lambda number, _: process.send_signal(number))
        status = process.wait()
        unfinished = sorted(os.listdir(folder))
    if status == 0 and unfinished:
        print(f"treepie.run: {', '.join(unfinished)} ended before Python did", file=sys.stderr)
        return 1
    return status if status >= 0 else 128 - status


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
