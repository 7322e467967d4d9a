"""Every setting: versions, folders, the CPU, vector widths, block sizes, threads, the cost model.

Nothing else in the library reads the environment, and no kernel chooses its own threshold.
"""

import functools
import os

import llvmlite.binding as llvm
import numpy as np

__version__ = "0.1.0"

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

#: The cost of a parallel region, by threading layer. With omp, measured on 2 cores: 2 us more than a serial
#: launch while the threads still spin from the last one, 10 to 40 us once they sleep. A launch goes
#: parallel when its estimated serial time is at least PARALLEL_GAIN times the cost.
PARALLEL_COST_NS = {"omp": 8e3, "tbb": 8e3, "workqueue": 48e3}
PARALLEL_GAIN = 3.0

#: The cost within a long program, whose threads spin, and where reading data that another core has just
#: written takes longer than the estimates below. With 1 us instead of 8, a step of `tabular` took 0.95 of the
#: time, `mlp` 0.98.
SPINNING_COST_NS = {"omp": 1e3, "tbb": 1e3, "workqueue": 48e3}

#: Estimated cost of moving a byte, and of a floating-point operation, in one thread: 12 bytes an element of
#: `add` took 0.08 to 0.13 ns out of cache, a fused multiply-add of `exp` 0.01 ns.
BYTE_NS = 0.01
FLOP_NS = 0.01


@functools.cache
def cpu() -> tuple[str, str]:
    """Name and feature string of the CPU that kernels are compiled for.

    `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES` override the host, as they do for Numba itself.
    """
    name = os.environ.get("NUMBA_CPU_NAME")
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if name is None:
        return llvm.get_host_cpu_name(), features or llvm.get_host_cpu_features().flatten()
    return name, features or ""


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
def has_fma() -> bool:
    """Whether a fused multiply-add is an instruction."""
    return isa() == "neon" or "+fma" in cpu()[1].split(",")


def affinity() -> int:
    """Count the cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


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
