"""What a launcher's environment says, and how `python -m treepie.run` starts a script."""

import os
import subprocess
import sys
import warnings

import pytest

from treepie import run
from treepie.kernels import config

from .jobs import launch, needs_mpi

VARIABLES = (
    *("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    *("MPI_LOCALNRANKS", "PMI_RANK", "PMI_FD", "TREEPIE_RANK_PROCESS", "SLURM_STEP_ID", "SLURM_NODEID"),
    *("SLURM_STEP_TASKS_PER_NODE", "SLURM_CPUS_ON_NODE", "SLURM_CPUS_PER_TASK", "SLURM_PROCID"),
)
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
SLURM = {"SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": "2(x3),4", "SLURM_NODEID": "3"}


@pytest.fixture
def machine(monkeypatch):
    """A machine of 16 cores, with some variables, an affinity mask and a quota."""

    def make(variables, bound=16, quota=()):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(config, "quotas", lambda: list(quota))
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(bound)), raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: 16)

    return make


@pytest.mark.parametrize(
    ("variables", "bound", "quota", "expected"),
    [
        (OPEN_MPI, 1, (), (1, 4, "mpirun --bind-to none")),
        (OPEN_MPI, 4, (), None),
        (OPEN_MPI, 1, (4,), None),  # the machine is ours in part
        ({**OPEN_MPI, "NUMBA_NUM_THREADS": "1"}, 1, (), None),
        ({**OPEN_MPI, "OMP_NUM_THREADS": "2"}, 1, (), (1, 4, "mpirun --bind-to none")),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "16"}, 1, (), None),
        ({"MPI_LOCALNRANKS": "2"}, 1, (), (1, 8, "mpiexec -bind-to none")),
        (SLURM, 1, (), (1, 4, "srun --cpus-per-task=4")),
        ({**SLURM, "SLURM_NODEID": "1"}, 1, (), (1, 8, "srun --cpus-per-task=8")),
        ({**SLURM, "SLURM_CPUS_ON_NODE": "4"}, 1, (), None),
        ({**SLURM, "SLURM_NODEID": "4"}, 1, (), None),  # no such machine
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "?"}, 1, (), None),
        ({}, 1, (), None),
    ],
)
def test_a_rank_that_is_bound_to_less_than_its_share(machine, variables, bound, quota, expected):
    machine(variables, bound, quota)
    assert config.binding() == expected
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sys.modules["treepie.distributed.world"]._check_binding()
    assert len(caught) == (expected is not None)
    if expected:
        number, share, flags = expected
        message = f"bound to {number} of the {share} cores that are its share, expected {flags}, or"
        assert message in str(caught[0].message)


@pytest.mark.parametrize(
    ("variables", "cores"),
    [(SLURM, 4), ({**SLURM, "SLURM_NODEID": "0"}, 8), ({**SLURM, "SLURM_CPUS_PER_TASK": "3"}, 3)],
)
def test_slurms_tasks_share_a_machine(machine, variables, cores):
    machine(variables)
    assert config.cores() == cores


def test_the_number_of_a_rank(machine):
    machine({"PMI_RANK": "3"})
    assert config.rank() == 3
    machine({"SLURM_PROCID": "5"})
    assert config.rank() == 5
    machine({})
    assert config.rank() == 0


def test_a_child_of_a_rank_is_no_rank(machine):
    machine({})
    assert config.is_rank()
    assert config.is_rank()
    os.environ["TREEPIE_RANK_PROCESS"] = "1"
    assert not config.is_rank()
    assert "TREEPIE_RANK_PROCESS" not in config.environment()


def test_slurms_process_manager_has_another_protocol(machine):
    machine({"PMI_FD": "7"})
    assert config.process_manager() == 7
    machine({"PMI_FD": "7", "SLURM_STEP_ID": "0"})
    assert config.process_manager() is None
    machine({})
    assert config.process_manager() is None


def test_a_process_alone_has_no_hooks_and_no_mpi():
    code = """
import sys
hook, leave = sys.excepthook, sys.exit
import treepie as tp
tp.distributed.world()
assert sys.excepthook is hook and sys.exit is leave and "mpi4py" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---- the script
def script(*words, **options):
    command = [sys.executable, "-m", "treepie.distributed.script", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


SHOW = "import sys, json; print(json.dumps([__name__, sys.argv, sys.path[0]])); print(input())"


@pytest.mark.parametrize("kind", ["file", "-c", "-m"])
def test_a_script_runs_as_python_runs_it(tmp_path, kind):
    """The name, the arguments, the path of modules and stdin are those of plain Python."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "show.py").write_text(SHOW)
    (tmp_path / "show.py").write_text(SHOW)
    words = {"file": ["sub/show.py"], "-c": ["-c", SHOW], "-m": ["-m", "show"]}[kind]
    words += ["-n", "3", "a b"]
    mine = script(*words, cwd=tmp_path, input="a line\n")
    plain = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, input="a line\n", capture_output=True, text=True, check=True
    )
    assert mine.stdout == plain.stdout, mine.stderr
    assert mine.returncode == 0


def test_the_status_of_a_script(tmp_path):
    assert script("-c", "raise SystemExit(7)").returncode == 7
    assert script(tmp_path / "none.py").returncode == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-n", "2"], "there is no script"),
        (["-n", "2", "-c"], "there is no script"),
        (["-n", "0", "a.py"], "-n is 0, expected at least 1"),
    ],
)
def test_errors_of_the_launcher(words, message, capsys):
    with pytest.raises(SystemExit):
        run.main(words)
    assert message in capsys.readouterr().err


@needs_mpi
@pytest.mark.parametrize("end", ["raise SystemExit(0)", "sys.exit(0)", "raise SystemExit(4)", "return"])
def test_a_rank_that_ends_while_others_go_on_ends_the_job(end):
    code = f"""
import sys, numpy as np, treepie as tp
comm = tp.distributed.world()
def main():
    for step in range(10**9):
        if comm.rank == 1 and step == 100:
            {end}
        comm.sum(np.ones(3))
main()
"""
    status, _, errors = launch(3, code, timeout=60)
    assert status != 0
    assert "at the end of its program" in errors, errors
