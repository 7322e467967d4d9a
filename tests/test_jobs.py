"""Real jobs over MPI: what they compute, and that none hangs where a rank fails."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from . import preempted
from .jobs import Job, launch, needs_mpi, open_mpi

pytestmark = needs_mpi

FAILING = Path(__file__).parent / "failing.py"
EPOCHS = 12


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_ranks_of_mpi(n):
    code = """
import numpy as np, treepie as tp
from tests import test_distributed as t
comm = tp.distributed.world()
t.check_communicator(comm)
mine, want = t.train(comm, clip_norm=0.3), t.train(clip_norm=0.3)
for a, b in zip(mine, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
assert tp.get_num_threads() >= 1
from tests import test_shared_update as u
assert u.reading_run(comm, True) == u.reading_run(comm, False)
if comm.rank == 0:
    print("equal on", comm.size)
"""
    assert launch(n, code)[:2] == (0, f"equal on {n}\n")


@pytest.mark.parametrize("where", ["start", "middle", "thread"])
def test_an_exception_on_one_rank_ends_the_job(where):
    code = f"""
import threading, treepie as tp
from tests import test_distributed as t
comm = tp.distributed.world()
def fail(*_):
    if comm.rank == 1:
        raise KeyError("broken")
if {where!r} == "start":
    fail()
elif {where!r} == "thread":
    threading.Thread(target=fail).start()
t.train(comm, epochs=10**6, report=fail if {where!r} == "middle" else None)
"""
    status, _, errors = launch(3, code, timeout=60)
    assert status != 0
    assert "[rank 1] KeyError: 'broken'" in errors
    assert errors.count("KeyError") == 1


@pytest.mark.parametrize("end", ["os._exit(0)", "os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_rank_that_vanishes_ends_the_job(end):
    code = f"""
import os, signal, treepie as tp
from tests import test_distributed as t
comm = tp.distributed.world()
def vanish(step, loss, st):
    if comm.rank == 1 and step == 5:
        print("vanishes", flush=True)
        {end}
t.train(comm, epochs=10**6, report=vanish)
"""
    start = time.perf_counter()
    status, output, _ = launch(3, code, timeout=60)
    assert status != 0
    assert output.startswith("vanishes\n")
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize("variable", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_a_launcher_of_another_mpi_is_an_error(variable):
    done = subprocess.run(
        [sys.executable, "-c", "import treepie as tp; tp.distributed.world()"],
        capture_output=True,
        text=True,
        env={**os.environ, variable: "4"},
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert f"{variable} is 4, but MPI has 1 process" in done.stderr


# ---- a rank that fails
MOMENTS = ("import", "data", "compile", "forward", "reduction", "callback", "checkpoint")
ENDS = ("exception", "SIGINT", "SIGTERM", "SIGKILL", "os._exit")
CASES = [
    *[(moment, end) for moment in MOMENTS for end in ENDS],
    *[(moment, "Ctrl-C") for moment in ("import", "callback", "checkpoint")],
    *[("earlier import", end) for end in ("exception", "sys.exit", "os._exit")],
    *[("import", "sys.exit"), ("callback", "sys.exit"), ("callback", "exception beside a thread")],
]


def check_ends(moment, end, folder, plain=False):
    with Job(2, FAILING, moment, end, folder, plain=plain) as job:
        job.read_until("fails")
        if end == "Ctrl-C":
            os.killpg(job.process.pid, signal.SIGINT)
        status, seconds, _, errors = job.end()
        left = job.left()
    assert status != 0
    assert seconds < 10.0
    assert left == []
    if end.startswith("exception"):
        rank = 0 if moment == "checkpoint" else 1
        assert errors.count(f"[rank {rank}] KeyError: 'broken'") == 1
        assert errors.count("Traceback") == 1
        assert errors.count("[rank") == errors.count(f"[rank {rank}]")
        assert "runpy" not in errors
    elif end in ("SIGINT", "Ctrl-C"):
        assert errors.count("Traceback") <= 1
        assert end == "Ctrl-C" or "[rank" in errors
    return status, errors


@pytest.mark.parametrize(("moment", "end"), CASES)
def test_a_rank_that_fails_ends_the_job(moment, end, tmp_path):
    status, _ = check_ends(moment, end, tmp_path)
    known = {"exception": 1, "SIGINT": 130, "sys.exit": 3}
    if (moment, end) == ("checkpoint", "SIGTERM"):
        assert status == 85
    elif "import" not in moment:  # before MPI_Init, Open MPI's launcher may tell of another rank first
        assert status == known.get(end, status)


@pytest.mark.parametrize(
    ("moment", "end"),
    [("import", "exception"), ("callback", "exception"), ("callback", "SIGKILL"), ("import", "sys.exit")],
)
def test_a_rank_that_fails_under_the_launcher_of_the_mpi(moment, end, tmp_path):
    check_ends(moment, end, tmp_path, plain=True)


# ---- preemption
@pytest.fixture(scope="module")
def whole():
    code = f"""
import treepie as tp
from tests import preempted
comm = tp.distributed.world()
result = preempted.run(None, {EPOCHS}, comm=comm)
if comm.rank == 0:
    print(result)
"""
    status, output, errors = launch(3, code)
    assert status == 0, errors
    return output.strip()


TARGETS = [("SIGTERM", target) for target in ("one rank", "run", "plain", "group")]


@pytest.mark.parametrize(("name", "target"), [*TARGETS, ("SIGUSR1", "run"), ("SIGUSR1", "plain")])
def test_preemption(name, target, tmp_path, whole):
    # Open MPI's launcher ends all ranks on SIGTERM.
    ended = open_mpi() and name == "SIGTERM" and target in ("plain", "group")
    number = getattr(signal, name)
    with Job(3, preempted.__file__, tmp_path, EPOCHS, plain=target == "plain") as job:
        job.read_until("ready", everybody=True)
        for _ in range(10):
            job.read_until("step")
        if target == "one rank":
            os.kill(job.processes[2], number)
        elif target == "group":
            os.killpg(job.process.pid, number)
        else:
            job.process.send_signal(number)
        status, seconds, output, errors = job.end()
    assert status != 0 if ended else status == 85, (output, errors)
    assert seconds < 10.0
    assert "Traceback" not in errors
    assert job.left() == []
    with Job(3, preempted.__file__, tmp_path, EPOCHS) as job:
        assert job.read_until("result").split()[1] == whole
        assert job.end()[0] == 0


# ---- launchers
@pytest.mark.parametrize(("n", "plain"), [(4, False), (2, True)])
def test_digits(n, plain):
    with Job(n, "-m", "treepie.examples.digits", plain=plain) as job:
        status, _, output, errors = job.end(timeout=200)
    assert status == 0, errors
    assert output.count("test accuracy 9") == 1  # of rank 0 alone
    assert output.count("parameters") == 1


def test_stdin_is_the_scripts():
    """Of rank 0: MPIs do not pass it on to others, nor, in the case of Open MPI, its end."""
    code = "from treepie.kernels import config; print('' if config.rank() else input())"
    command = [sys.executable, "-m", "treepie.run", "-n", "2", "-c", code]
    done = subprocess.run(command, input="a line\n", capture_output=True, text=True, timeout=60, check=True)
    assert "a line" in done.stdout


def test_the_status_is_the_scripts():
    assert launch(2, "raise SystemExit(7)")[0] == 7
    assert launch(2, "import sys; sys.exit(7)")[0] == 7
