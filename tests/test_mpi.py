"""Sums over the processes of MPI: in shared memory, by messages between nodes, and waits with a limit."""

import os
import time

import numpy as np
import pytest

from treepie.distributed import Local
from treepie.distributed.communicator import begin_sum, empty

from .jobs import launch, needs_mpi

pytestmark = needs_mpi


def test_engines_without_the_optional_methods_sum_at_once():
    def run(comm):
        array = empty(comm, (3, 2), "float32")
        assert (array.shape, array.dtype) == ((3, 2), np.float32)
        array[...] = comm.rank + 1
        pending = begin_sum(comm, array)
        pending.wait()
        return pending.test(), array.tolist()

    assert Local(3).run(run) == [(True, [[6.0, 6.0]] * 3)] * 3


#: Sums of arrays that are in shared memory, or elsewhere, or begin and complete later, of each dtype.
SUMS = """
import sys, time
import numpy as np, treepie as tp

comm = tp.distributed.world()

def values(rank, size, dtype):
    rng = np.random.default_rng(rank + size)
    if np.dtype(dtype).kind == "i":
        return rng.integers(-(10**9), 10**9, size).astype(dtype)
    return (rng.standard_normal(size) * 10.0 ** rng.integers(-3, 4, size)).astype(dtype)

def added(rows):
    total = rows[0].copy()
    for row in rows[1:]:
        total += row
    return total

def shared(size, dtype):
    array = comm.empty((size,), dtype)
    array[...] = values(comm.rank, size, dtype)
    comm.sum(array)
    return array

def part_of_shared(size, dtype):
    array = comm.empty((3, size + 16), dtype)
    array[...] = 7
    array[1, 16:] = values(comm.rank, size, dtype)
    comm.sum(array[1, 16:])
    assert (array[[0, 2]] == 7).all() and (array[1, :16] == 7).all()
    return array[1, 16:]

def private(size, dtype):
    array = values(comm.rank, size, dtype)
    comm.sum(array)
    return array

def begun(size, dtype):
    arrays = [comm.empty((size,), dtype), values(comm.rank, size, dtype)]
    arrays[0][...] = arrays[1]
    pending = [comm.begin_sum(a) for a in arrays]
    while not pending[0].test():
        time.sleep(1e-4)
    pending[1].wait()
    assert pending[1].test()
    np.testing.assert_array_equal(*arrays)
    return arrays[0]

for dtype in ("float32", "float64", "int64"):
    for size in (0, 1, 17, 4096, 5000, 1100001):
        rows = [values(r, size, dtype) for r in range(comm.size)]
        want = added([added(rows[k : k + PER_NODE]) for k in range(0, comm.size, PER_NODE)])
        for way in (shared, part_of_shared, private, begun):
            found = way(size, dtype)
            assert found.tobytes() == want.tobytes(), (comm.rank, way, dtype, size)
"""


@pytest.mark.parametrize(
    ("n", "per_node"), [(2, 0), (2, 1), (3, 0), (3, 2), (4, 0), (4, 1), (4, 2), (7, 0), (7, 1), (7, 3)]
)
def test_sums_are_in_the_order_of_ranks_and_nodes(n, per_node):
    """So they have the same bits on all ranks, and in every run."""
    code = SUMS.replace("PER_NODE", str(per_node or n)) + "print('equal')"
    status, output, errors = launch(n, code, timeout=300, TREEPIE_RANKS_PER_NODE=str(per_node))
    assert status == 0, errors
    assert output.count("equal") == n


def test_the_sum_of_many_small_arrays_is_that_of_each():
    """Ranks that are fast do not overwrite what slow ones still read."""
    code = """
import numpy as np, treepie as tp
comm = tp.distributed.world()
rng = np.random.default_rng(comm.rank)
for k in range(1000):
    a = np.array([k * 7 + comm.rank, 1])
    comm.sum(a)
    assert a.tolist() == [k * 7 * comm.size + sum(range(comm.size)), comm.size], (k, a)
    if k % 100 == 0:
        comm.barrier()
    np.zeros(rng.integers(3000)).sum()
comm.barrier()
print("equal")
"""
    for per_node in (0, 2):
        status, output, errors = launch(3, code, TREEPIE_RANKS_PER_NODE=str(per_node))
        assert status == 0, errors
        assert output.count("equal") == 3


def test_the_sum_of_a_first_rank_stays_until_all_have_read_it():
    code = """
import numpy as np, treepie as tp
comm = tp.distributed.world()
array = comm.empty((1 << 19,), "float64")
for k in range(30):
    array[...] = k
    comm.sum(array)
    found = array[0], array[-1], array.min(), array.max()
    array[...] = -1
    assert set(found) == {4.0 * k}, (k, found)
print("equal")
"""
    status, output, errors = launch(4, code, TREEPIE_RANKS_PER_NODE="2")
    assert status == 0, errors
    assert output.count("equal") == 4


@pytest.mark.parametrize("per_node", [0, 1, 2])
def test_calls_complete_what_has_begun_before_them(per_node):
    code = """
import numpy as np, treepie as tp
comm = tp.distributed.world()
for k in range(20):
    a, b, c = comm.empty((5000,), "float32"), np.ones(3000), np.ones(2)
    a[...] = k
    pending = [comm.begin_sum(x) for x in (a, b)]
    if k % 2:
        comm.sum(c)
        assert (c == comm.size).all()
    else:
        comm.barrier()
    assert all(p.test() for p in pending)
    assert (a == k * comm.size).all() and (b == comm.size).all()
print("equal")
"""
    status, output, errors = launch(4, code, TREEPIE_RANKS_PER_NODE=str(per_node))
    assert status == 0, errors
    assert output.count("equal") == 4


def test_arrays_that_cannot_be_summed_are_an_error():
    code = """
import numpy as np, treepie as tp
comm = tp.distributed.world()
for call in (comm.sum, comm.begin_sum, comm.sum_part):
    try:
        call(np.ones(3, np.uint8))
    except TypeError as error:
        print(error)
"""
    status, output, errors = launch(2, code)
    assert status == 0, errors
    assert output.count("array is uint8, expected float32, float64, int32 or int64") == 6


@pytest.mark.parametrize("per_node", [0, 1, 2])
def test_broadcasts_and_barriers(per_node):
    code = """
import numpy as np, time, treepie as tp
comm = tp.distributed.world()
for root in range(comm.size):
    for dtype in ("float32", "int64", "uint8"):
        a = np.full((3, 5), comm.rank, dtype)
        comm.broadcast(a, root)
        assert (a == root).all()
comm.broadcast(np.zeros(0))
for late in range(comm.size):
    comm.barrier()
    start = time.perf_counter()
    if comm.rank == late:
        time.sleep(0.3)
    comm.barrier()
    assert time.perf_counter() - start > 0.25
print("all")
"""
    status, output, errors = launch(4, code, TREEPIE_RANKS_PER_NODE=str(per_node))
    assert status == 0, errors
    assert output.count("all") == 4


def test_shared_arrays_are_used_again_when_no_rank_uses_them():
    code = """
import numpy as np, treepie as tp
from treepie.kernels.memory import address_of
comm = tp.distributed.world()
addresses, kept = set(), []
for k in range(40):
    array = comm.empty((1000,), "float32")
    addresses.add(address_of(array))
    if k < 3 and comm.rank == k % comm.size:
        kept.append(array[10:])  # on one rank only
        kept[-1][...] = k
    del array
assert len(addresses) == 4, len(addresses)
assert all((a == a[0]).all() for a in kept)
print("again")
"""
    status, output, errors = launch(3, code)
    assert status == 0, errors
    assert output.count("again") == 3


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux only")
def test_memory_of_another_process_is_not_mapped():
    """In another container the same numbers are another file."""
    from treepie.distributed import memory

    file = os.memfd_create("test")
    try:
        os.posix_fallocate(file, 0, 4096)
        of = os.getpid(), file, os.fstat(file).st_dev, os.fstat(file).st_ino
        memory._mapped(of, 4096)[:] = 1
        assert os.pread(file, 2, 0) == bytes([1, 1])
        with pytest.raises(OSError, match="another process"):
            memory._mapped((*of[:3], of[3] + 1), 4096)
    finally:
        os.close(file)


@pytest.mark.parametrize("call", ["os.posix_fallocate", "mmap.mmap"])
def test_memory_that_cannot_be_shared_is_a_warning(call):
    code = (
        """
import errno, mmap, os, warnings
import treepie as tp
if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == "1":
    def full(*_):
        raise OSError(errno.ENOSPC, "no space")
    CALL = full
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    comm = tp.distributed.world()
assert [str(w.message).startswith("distributed.world: the ranks of this node cannot share memory")
        for w in caught] == [True] * (comm.rank == 0)
"""
        + SUMS.replace("PER_NODE", "1").partition("comm = ")[0]
        + SUMS.replace("PER_NODE", "1").partition("world()")[2]
    )
    status, output, errors = launch(3, code.replace("CALL", call) + "print('equal')")
    assert status == 0, errors
    assert output.count("equal") == 3


def test_different_calls_are_an_error_instead_of_a_hang():
    code = """
import numpy as np, treepie as tp
comm = tp.distributed.world()
comm.sum(np.zeros(3 + comm.rank // 2, np.float32))
"""
    status, _, errors = launch(3, code)
    assert status != 0
    assert "is at a sum of 3 float32 and rank 2 at a sum of 4 float32" in errors


STUCK = """
import sys, time
import numpy as np, treepie as tp
comm = tp.distributed.world()
size, call = SIZE, "CALL"
array = np.ones(size) if call != "shared" else comm.empty((size,), "float64")
array[...] = 1
comm.sum(np.ones(4000))  # compiles
comm.barrier()
if comm.rank == 1:
    time.sleep(1.5)
if call == "barrier":
    comm.barrier()
elif call == "broadcast":
    comm.broadcast(array)
elif call == "begin":
    pending = comm.begin_sum(array)
    pending.wait()
else:
    comm.sum(array)
if call not in ("barrier", "broadcast"):
    assert (array == comm.size).all()
print("went on")
"""


@pytest.mark.parametrize(
    ("call", "size", "named", "per_node"),
    [
        ("private", 2, "a sum of 2 float64", 0),
        ("private", 50000, "a sum of 50000 float64", 1),
        ("shared", 50000, "a sum of 50000 float64", 0),
        ("begin", 50000, "a sum of 50000 float64", 2),
        ("barrier", 1, "a barrier", 2),
        ("broadcast", 9, "a broadcast", 0),
    ],
)
def test_a_rank_that_is_stuck_is_named(call, size, named, per_node):
    code = STUCK.replace("CALL", call).replace("SIZE", str(size))
    env = {"TREEPIE_STUCK_SECONDS": "0.5", "TREEPIE_RANKS_PER_NODE": str(per_node)}
    status, output, errors = launch(4, code, **env)
    assert status == 0, errors
    assert output.count("went on") == 4
    lines = [line for line in errors.splitlines() if "did not arrive" in line]
    assert all(
        f"treepie: rank 1 did not arrive within 0.5 s at {named}; it goes on" in line for line in lines
    )
    ranks = {line.partition("]")[0] for line in lines}
    assert len(ranks) == len(lines)  # once each
    waiting = {0: {0, 2, 3}, 1: {0, 2, 3}, 2: {0, 2}}[per_node]
    assert ranks == {f"[rank {r}" for r in waiting}


@pytest.mark.parametrize("per_node", [0, 1, 2])
def test_a_job_that_is_stuck_ends_when_it_is_asked_to(per_node):
    code = STUCK.replace("CALL", "shared").replace("SIZE", "5000").replace("sleep(1.5)", "sleep(60)")
    env = {"TREEPIE_STUCK_ABORT_SECONDS": "1", "TREEPIE_RANKS_PER_NODE": str(per_node)}
    start = time.perf_counter()
    status, output, errors = launch(4, code, **env)
    assert status != 0
    assert "went on" not in output
    assert "rank 1 did not arrive" in errors
    assert "it ends the job" in errors
    assert time.perf_counter() - start < 20


def test_a_rank_that_waits_for_long_sleeps():
    code = """
import time
import numpy as np, treepie as tp
comm = tp.distributed.world()
comm.sum(np.ones(50000))
comm.barrier()
if comm.rank == 0:
    time.sleep(2)
    comm.sum(np.ones(50000))
else:
    busy = time.process_time()
    comm.sum(np.ones(50000))
    print("busy for", time.process_time() - busy)
"""
    for per_node in (0, 1):
        status, output, errors = launch(2, code, TREEPIE_RANKS_PER_NODE=str(per_node))
        assert status == 0, errors
        assert float(output.split()[-1]) < 0.8  # of 2 s


@pytest.mark.parametrize("value", ["soon", "-1", "nan"])
def test_a_limit_that_is_no_number_is_an_error(value):
    status, _, errors = launch(1, "import treepie", TREEPIE_STUCK_SECONDS=value)
    assert status != 0
    assert f"TREEPIE_STUCK_SECONDS is {value!r}, expected a number of seconds" in errors
