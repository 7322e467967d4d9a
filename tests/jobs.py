"""Jobs of several processes, for tests: `python -m treepie.run`, or the launcher of an MPI."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from treepie import run

needs_mpi = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None, reason="needs mpi4py: pip install treepie[mpi]"
)

ROOT = Path(__file__).parent.parent


def open_mpi():
    """Whether the launcher of this environment is Open MPI's."""
    launcher = run.find_launcher()
    return launcher is not None and run._is_open_mpi(launcher)


def launch(n, code, timeout=100, module="treepie.run", **env):
    """Run code on n ranks; return the exit status, and what they print."""
    done = subprocess.run(
        [sys.executable, "-m", module, "-n", str(n), "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **env},
    )
    return done.returncode, done.stdout, done.stderr


class Job:
    """A Python script on n ranks, in a session of its own, as a terminal starts it.

    plain: whether the MPI's own launcher starts it, instead of `python -m treepie.run`.
    """

    def __init__(self, n, *script, plain=False, **env):
        script, launcher = [sys.executable, *map(str, script)], run.find_launcher()
        start = [*run.command(launcher, n, open_mpi()), *script]
        if not plain:
            start = [sys.executable, "-m", "treepie.run", "-n", str(n), *script[1:]]
        env = {**run.environment(n, True), "PYTHONPATH": str(ROOT), **env}
        pipe, none = subprocess.PIPE, subprocess.DEVNULL
        self.process = subprocess.Popen(
            start, env=env, stdin=none, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )
        self.processes, self._count = {}, n

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
        self.process.communicate()

    def read_until(self, word, everybody=False):
        """Read lines up to one with a word; those that are "process RANK NUMBER" are noted.

        everybody: read on until all ranks have printed theirs.
        """
        found = None
        for line in self.process.stdout:
            words = line.split()
            if words[:1] == ["process"]:
                self.processes[int(words[1])] = int(words[2])
            elif words[:1] == [word]:
                found = line
            # A launcher passes on the lines of a rank in order, those of several as they come.
            if found and len(self.processes) >= (self._count if everybody else 0):
                return found
        raise AssertionError(f"no {word}: {self.process.communicate()[1]}")

    def end(self, timeout=60):
        """Return the exit status, the seconds until the job has ended, and what it printed to both pipes."""
        start = time.monotonic()
        output, errors = self.process.communicate(timeout=timeout)
        return self.process.returncode, time.monotonic() - start, output, errors

    def left(self):
        """Return the processes of ranks that still run a second after their launcher, which may end first."""
        end = time.monotonic() + 1.0
        while True:
            left = [number for number in self.processes.values() if not has_ended(number)]
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.02)


def has_ended(process):
    """Whether a process has ended, though nobody may have asked for its status."""
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return not run._is_alive(process)
