"""Every setting: versions, folders, the CPU, vector widths, block sizes, threads, the cost model.

Nothing else in the library reads the environment, and no kernel chooses its own threshold.
"""

import ctypes
import functools
import math
import os
import platform
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np

__version__ = "0.1.0"

if not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise ImportError("treepie does not support free-threaded Python: start it with PYTHON_GIL=1")

#: Folder of compiled kernels; unset means the user's cache folder (see `cache.py`).
CACHE_DIR = os.environ.get("TREEPIE_CACHE_DIR")

#: Folder of downloaded data sets; unset means `datasets` in the user's cache folder.
DATA_DIR = os.environ.get("TREEPIE_DATA_DIR")

#: The dtypes a tensor can have.
DTYPES = tuple(np.dtype(t) for t in ("float32", "float64", "int32", "int64", "bool"))

#: Elements of a chunk of an elementwise kernel: 64 kB of float32, so that the operands of a chain stay in the
#: 1 MB second-level cache. A constant, so that results do not depend on the machine.
ELEMENTWISE_CHUNK = 16384

#: Elements of a partial sum. Partial sums are combined in index order at any number of threads.
REDUCE_CHUNK = 4096

#: Bytes of a cache line; results of at least the second number of bytes start at one, which takes 1 us.
LINE, ALIGNED_LEAST = 64, 1 << 14

#: Buffers of at least this many bytes are reused for later results (see `memory.py`); malloc reuses smaller
#: ones itself.
KEPT_LEAST = 1 << 17

#: Bytes of such buffers at most; when there would be more, all are released.
KEPT_MOST = 1 << 29

#: Bytes of programs that a Trainer or a jitted function keeps: launch tables and their constants.
PROGRAM_BYTES = 1 << 28

#: Entries of the traces that it keeps, of half a kB each.
TRACE_ENTRIES = 1 << 17

#: Whether pure functions are checked: traced at each call, and compared with their first trace.
CHECK = os.environ.get("TREEPIE_CHECK", "") not in ("", "0")

#: The cost of sharing a launch with helpers that sleep: a launch is shared when its estimated serial time
#: is at least PARALLEL_GAIN times as long.
PARALLEL_COST_NS, PARALLEL_GAIN = 8e3, 3.0

#: The cost within a long program, whose helpers wait actively, and where reading data that another core has
#: just written takes longer than the estimates below. With 1 us instead of 8, a step of `tabular` took 0.95
#: of the time, `mlp` 0.98.
SPINNING_COST_NS = 1e3

#: How long a helper waits actively for the next launch before it sleeps; how late a helper's chunk may be
#: before the caller sleeps too; how often it is judged whether helpers save time. Beside a busy process on
#: each of two cores, a step of `mlp` took 4.7 ms with the first at 30 us, 6.0 at 10 or 100; threads that
#: sleep early run in the same periods.
ACTIVE_NS, LATE_NS, WINDOW_NS = 3e4, 2e4, 5e7

#: Estimated cost of moving a byte, and of a floating-point operation, in one thread: 12 bytes an element of
#: `add` took 0.08 to 0.13 ns out of cache, a fused multiply-add of `exp` 0.01 ns.
BYTE_NS = 0.01
FLOP_NS = 0.01

#: Linux on ARM: the word of the auxiliary vector with more features of the processor, and BF16's bit of it.
_HWCAP2, _HWCAP2_BF16 = 26, 1 << 14


@functools.cache
def cpu() -> tuple[str, str]:
    """Name and feature string of the CPU that kernels are compiled for.

    `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES` override the host, as they do for Numba itself.
    """
    name = os.environ.get("NUMBA_CPU_NAME")
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if name is None:
        found = ",".join([llvm.get_host_cpu_features().flatten(), *_more_features()])
        return llvm.get_host_cpu_name(), features or found
    return name, features or ""


def _more_features() -> list[str]:
    """Return features of the host that LLVM does not detect: ARM's BF16, of which the system tells."""
    if platform.machine() not in ("aarch64", "arm64") or sys.platform not in ("linux", "darwin"):
        return []
    system, size, value = ctypes.CDLL(None), ctypes.c_size_t(4), ctypes.c_int(0)
    if sys.platform == "darwin":
        system.sysctlbyname(
            b"hw.optional.arm.FEAT_BF16", ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0)
        )
        return ["+bf16"] if value.value else []
    system.getauxval.restype, system.getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return ["+bf16"] if system.getauxval(_HWCAP2) & _HWCAP2_BF16 else []


@functools.cache
def isa() -> str:
    """Name the vector instructions that kernels use: avx512, avx2, neon, or generic."""
    features = cpu()[1].split(",")
    names = {"+avx512f": "avx512", "+avx2": "avx2", "+neon": "neon"}
    return next((name for feature, name in names.items() if feature in features), "generic")


@functools.cache
def vector_bytes() -> int:
    """Width of a vector register."""
    return {"avx512": 64, "avx2": 32}.get(isa(), 16)


@functools.cache
def second_level_cache() -> int:
    """Bytes of the second-level cache of a core; where the system does not tell, those that are usual."""
    try:
        size = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    except (AttributeError, ValueError, OSError):  # not Linux with the GNU C library
        size = 0
    return size if size > 0 else 1 << (20 if isa() in ("avx512", "neon") else 19)


@functools.cache
def has_fma() -> bool:
    """Whether a fused multiply-add is an instruction."""
    return isa() == "neon" or "+fma" in cpu()[1].split(",")


def cores() -> int:
    """Count the cores that this process may use: `NUMBA_NUM_THREADS`, or the least of what limits them.

    These are the affinity mask, the quotas of the control groups, OMP_NUM_THREADS, SLURM_CPUS_PER_TASK, and
    a fair part of the machine's cores among the processes that a launcher started on it.
    """
    if fixed := _number("NUMBA_NUM_THREADS"):
        return fixed
    total = os.cpu_count() or 1
    limits = [_bound_cores(total), *quotas(), _number("OMP_NUM_THREADS"), _number("SLURM_CPUS_PER_TASK")]
    if ranks := _local_ranks():
        limits.append(max(total // ranks, 1))
    return min(limit for limit in limits if limit)


def _bound_cores(total: int) -> int:
    """Return the number of cores of the affinity mask."""
    # Windows and macOS have no affinity masks that Python can read.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total


def _local_ranks() -> int:
    """Return how many processes a launcher started on this machine, 0 where it does not say."""
    ranks = max(map(_number, ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")))
    if ranks or "SLURM_STEP_ID" not in os.environ:
        return ranks
    counts: list[int] = []  # "2(x3),1": two on each of three machines, one on the fourth
    for word in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        count, _, times = word.rstrip(")").partition("(x")
        if count.isdecimal():
            counts += [int(count)] * int(times or 1)
    node = _number("SLURM_NODEID")
    return counts[node] if node < len(counts) else 0


def binding() -> tuple[int, int, str] | None:
    """Return the cores that this rank is bound to, its share of those that may be used, and what frees it.

    None where the first is not less than the second, or than the threads that the user has asked for.
    """
    ranks, total = _local_ranks(), os.cpu_count() or 1
    if not ranks:
        return None
    # Slurm's allocation may be a part of the machine.
    share = min([total, *quotas(), _number("SLURM_CPUS_ON_NODE") or total]) // ranks
    bound = _bound_cores(total)
    threads = _number("NUMBA_NUM_THREADS") or _number("OMP_NUM_THREADS") or share
    if bound >= min(share, threads):
        return None
    if started_by_open_mpi():
        return bound, share, "mpirun --bind-to none"
    slurm = "SLURM_STEP_ID" in os.environ
    return bound, share, f"srun --cpus-per-task={share}" if slurm else "mpiexec -bind-to none"


def _number(variable: str) -> int:
    """Return a variable of the environment that is a whole number, 0 where it is none."""
    text = os.environ.get(variable, "").partition(",")[0]  # OMP_NUM_THREADS may be a list
    return int(text) if text.isdecimal() else 0


def quotas(groups: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> list[int]:
    """Return the quotas of this process's control groups on Linux, version 1 or 2, in cores, rounded up.

    groups: the file that names the groups.  root: the folder in which they are mounted.
    """
    try:
        lines = Path(groups).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []  # not Linux
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for mount in _mounts(Path(root), controllers):
            folder = mount / path.lstrip("/")
            # A quota of any parent holds too; in a container, the path may be one of the host's.
            for group in (folder, *folder.parents):
                if group.is_relative_to(mount):
                    found += _quota(group)
    return found


def _mounts(root: Path, controllers: str) -> list[Path]:
    """Return where the hierarchy of some controllers may be mounted; none where it has no quota of cores."""
    if not controllers:
        return [root]
    return [root / "cpu", root / controllers] if "cpu" in controllers.split(",") else []


def _quota(group: Path) -> list[int]:
    for files in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            words = " ".join((group / name).read_text(encoding="ascii") for name in files).split()
        except OSError:
            continue  # the other version, or no such group in this container
        if len(words) == 2 and words[0].isdecimal():  # "max" and -1 are none
            return [max(math.ceil(int(words[0]) / int(words[1])), 1)]
    return []


def environment() -> dict[str, str]:
    """Return a copy of the environment, for processes that are started."""
    return {name: value for name, value in os.environ.items() if name != "TREEPIE_RANK_PROCESS"}


#: The folder in which ranks note for `python -m treepie.run` that they have begun, and ended.
RUN_FOLDER = os.environ.get("TREEPIE_RUN_FOLDER")


def _seconds(variable: str, default: float) -> float:
    """Return a variable of the environment that is a number of seconds; 0 is never."""
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise ValueError(f"{variable} is {text!r}, expected a number of seconds, or 0 for never")
    return seconds


#: After how many seconds ranks that wait name those that have not arrived, and after how many they end the
#: job; 0 is never.
STUCK_SECONDS = _seconds("TREEPIE_STUCK_SECONDS", 300.0)
STUCK_ABORT_SECONDS = _seconds("TREEPIE_STUCK_ABORT_SECONDS", 0.0)

#: How many ranks share memory at most: with fewer than a node has, ranks of one machine talk as several
#: nodes do, and with 1 no memory is shared. 0 is all ranks of a node.
RANKS_PER_NODE = _number("TREEPIE_RANKS_PER_NODE")

#: How long a rank waits actively for another one; for how many seconds it then looks again and again, and
#: lets others have its core between looks; how long it sleeps between looks after that, and how long once it
#: has waited for a second. Messages of other nodes make progress at looks alone, for which they have more
#: time, and more for each byte.
RANK_SPIN_NS, RANK_YIELD_SECONDS, RANK_SLEEP, RANK_LONG_SLEEP = 5e4, 3e-4, 5e-5, 1e-3
MESSAGE_YIELD_SECONDS, MESSAGE_BYTE_SECONDS = 2e-3, 1e-8


def processes() -> tuple[str, int]:
    """Return how many processes a launcher started together, and the variable that says so.

    Open MPI, MPICH and Intel MPI tell every process. Slurm tells those of a step, that srun started;
    SLURM_NTASKS alone is there in a batch script too, which is one process.
    """
    names = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"]
    if "SLURM_STEP_ID" in os.environ:
        names.append("SLURM_NTASKS")
    sizes = {name: int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()}
    most = max(sizes, key=lambda name: sizes[name], default="")
    return most, sizes.get(most, 1)


def rank() -> int:
    """Return the number of this process among those that a launcher started together."""
    names = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
    return next((_number(name) for name in names if name in os.environ), 0)


def started_by_open_mpi() -> bool:
    """Return whether Open MPI's launcher started this process."""
    return "OMPI_COMM_WORLD_SIZE" in os.environ


def process_manager() -> int | None:
    """Return the descriptor on which this process talks to MPICH's or Intel MPI's launcher, if it has one."""
    # Slurm's has the same name, for another protocol.
    return _number("PMI_FD") or None if "SLURM_STEP_ID" not in os.environ else None


def is_rank() -> bool:
    """Return whether a launcher started this process; its children have the same environment."""
    process = str(os.getpid())
    return os.environ.setdefault("TREEPIE_RANK_PROCESS", process) == process
