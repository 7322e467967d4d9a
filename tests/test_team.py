"""The team: a launch is complete when its chunks are, whatever helpers do."""

import ctypes
import threading
import time
from array import array

import pytest

from treepie.kernels import native, program, team, threads
from treepie.kernels.atomics import fetch_add, load
from treepie.kernels.compiled import c_function
from treepie.kernels.helpers import Helpers, ticks_per_ns
from treepie.kernels.program import HEADER

ENTRY = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)


class Launched:
    """A launch whose chunks are Python calls: `chunk(number)`."""

    def __init__(self, chunks, chunk):
        self.rows = []
        self.entry = ENTRY(lambda block, lo, hi: self.call(chunk, lo, hi))
        address = ctypes.cast(self.entry, ctypes.c_void_p).value
        self.words = array("q", [address, 16, 0, chunks, 10**6])

    def call(self, chunk, lo, hi):
        for k in range(lo, hi):
            chunk(k)
            self.rows.append((k, threading.get_ident()))

    def run(self, address):
        walk = program.runner()
        assert walk(self.words.buffer_info()[0], 1, address, 0, 0, 0) == -1
        return sorted(k for k, _ in self.rows)


@pytest.fixture
def helpers():
    made = Helpers(2, region=False)
    yield made
    made.stop()


def words(helpers):
    return helpers._words


def count_chunks(block: int, lo: int, hi: int) -> None:
    """Count how often each chunk is computed, in words whose address is the argument."""
    for chunk in range(lo, hi):
        fetch_add(load(block + 8 * HEADER) + 8 * chunk, 1)


def test_every_chunk_is_computed_once(helpers):
    entry = native.load("test_count", lambda: c_function("test_count", count_chunks, 3))
    walk, total = program.runner(), 0
    for chunks in (1, 2, 3, 50, 257):
        counts = array("q", [0] * chunks)
        words = array("q", [entry, 16, 0, chunks, 10**6, counts.buffer_info()[0]])
        for k in range(3000):
            assert walk(words.buffer_info()[0], 1, helpers.address, 0, 0, 0) == -1
            assert set(counts) == {k + 1}
        total += 3000
    # Launches that were shared are numbered, and none was another's; beside other work some are not shared.
    shared, left = divmod(int(helpers._words[team.TICKET // 8]), 1 << 32)
    assert (0 < shared <= total, left) == (True, 0)


def test_helpers_take_chunks(helpers):
    launch = Launched(12, lambda k: time.sleep(0.01))
    launch.run(helpers.address)
    assert len({thread for _, thread in launch.rows}) == 3


def test_a_helper_that_never_comes_delays_nothing():
    alone = Helpers(0, region=False)
    try:
        assert Launched(40, lambda k: None).run(alone.address) == list(range(40))
    finally:
        alone.stop()


def test_a_late_helper_delays_only_the_chunk_that_it_holds(helpers):
    caller, late, rest = threading.get_ident(), threading.Event(), []

    def chunk(k):
        time.sleep(0.002)
        if threading.get_ident() != caller and not late.is_set():
            late.set()
            time.sleep(0.3)
            rest.append(len(launch.rows))

    launch = Launched(30, chunk)
    start = time.perf_counter()
    assert launch.run(helpers.address) == list(range(30))
    assert rest == [29]  # all others were done when it came back
    assert time.perf_counter() - start < 2


def test_callers_work_alone_where_helpers_cost_time(helpers):
    caller, held = threading.get_ident(), []

    def chunk(k):
        time.sleep(0.001)
        if threading.get_ident() != caller:
            held.append(k)
            time.sleep(0.2)

    def run():
        """Return whether helpers have taken part."""
        held.clear()
        assert Launched(60, chunk).run(helpers.address) == list(range(60))
        return bool(held)

    assert run()  # a window in which the caller has slept
    assert not run()  # one in which it works alone, faster
    assert not run()  # and goes on so
    assert run()  # until sharing is measured again
    assert [run() for _ in range(4)] == [False, False, False, True]  # for longer, the second time


def test_helpers_go_on_where_working_alone_is_slower(helpers):
    caller = threading.get_ident()

    def chunk(k):
        time.sleep(0.001 if threading.get_ident() == caller else 0.015)

    shared = []
    for _ in range(12):
        launch = Launched(60, chunk)
        launch.run(helpers.address)
        shared.append(len({thread for _, thread in launch.rows}) > 1)
    assert sum(shared) >= 6


def test_helpers_that_save_time_keep_helping(helpers):
    helped = set()
    for _ in range(20):
        launch = Launched(9, lambda k: time.sleep(0.002))
        launch.run(helpers.address)
        helped.add(len({thread for _, thread in launch.rows}) > 1)
    assert helped == {True}


def test_a_second_caller_does_not_wait_for_the_team(helpers):
    held, release = threading.Event(), threading.Event()

    def chunk(k):
        time.sleep(0.002)
        if threading.current_thread().name != "first":
            held.set()
            release.wait(10)

    first = Launched(9, chunk)
    thread = threading.Thread(target=first.run, args=(helpers.address,), name="first", daemon=True)
    thread.start()
    assert held.wait(10)
    assert Launched(20, lambda k: None).run(helpers.address) == list(range(20))
    release.set()
    thread.join(10)
    assert not thread.is_alive()
    assert sorted(k for k, _ in first.rows) == list(range(9))


def test_helpers_sleep_when_there_is_nothing_to_do(helpers):
    Launched(5, lambda k: None).run(helpers.address)
    deadline = time.perf_counter() + 10
    while words(helpers)[team.ASLEEP // 8] < 2 and time.perf_counter() < deadline:
        time.sleep(0.001)
    assert words(helpers)[team.ASLEEP // 8] == 2
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.05


def test_the_clock_runs_at_its_rate():
    clock = ctypes.CFUNCTYPE(ctypes.c_int64)(native.load("clock", None))
    start, ticks = time.perf_counter_ns(), clock()
    time.sleep(0.05)
    assert (clock() - ticks) / ticks_per_ns() == pytest.approx(time.perf_counter_ns() - start, rel=0.05)


def test_the_team_of_the_process_is_used():
    if threads.get_num_threads() == 1:
        pytest.skip("needs two threads")
    assert Launched(20, lambda k: None).run(threads.team()) == list(range(20))
