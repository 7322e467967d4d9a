"""How threads share the chunks of a launch: the protocol, in functions that Numba compiles.

A caller publishes a launch and computes chunks of it, as helpers do while they have a core. A launch is
complete when its chunks are: a helper that lost its core delays only the chunk that it holds, and one that
never comes delays nothing. Beside other processes three rules keep callers fast: a thread that waits for
long sleeps, and so keeps its share of the cores for later; a helper leaves the caller's core; and where
helpers have cost more than they saved, callers work alone for a while.

A team is a block of words, at the byte offsets below; what different threads write is two cache lines apart.
`helpers.py` makes it and starts the helpers.
"""

from .atomics import call_c, compare_exchange, exchange, fetch_add, load, pause, store, ticks
from .compiled import device
from .intrinsics import call_address

#: The ticket: the number of the launch, and how many of its chunks nobody has taken. As both are in one
#: word, a helper cannot take a chunk of another launch than it has seen.
TICKET = 0
#: Chunks that are done.
DONE = 128
#: 1 while a launch of some thread has the team.
OWNED = 256
#: The launch: entry point, argument block, chunks, the caller's core. They stay until all chunks are done.
ENTRY, BLOCK, CHUNKS, CORE = range(384, 416, 8)
#: What sharing saves: the ticks that launches took, and those that they would have taken without helpers,
#: by the time of the caller's own chunks. The tick until which callers work alone, and for how many windows
#: that is.
SHARED, ALONE, ALONE_UNTIL, WINDOWS = range(416, 448, 8)
#: Helpers that sleep, reading from a pipe; 1 while the caller does, reading from another.
ASLEEP, WAITING = 512, 640
#: 1 when helpers are to end; helpers that have begun.
STOP, BEGUN = 768, 776
#: Settings, in ticks: how long a helper waits actively before it sleeps, how late a chunk may be before the
#: caller does, and after how long SHARED and ALONE are compared.
ACTIVE, LATE, WINDOW = range(896, 920, 8)
#: C functions: read, write; sched_getcpu and sched_setaffinity, or 0.
READ, WRITE, GET_CORE, SET_CORES = range(920, 952, 8)
#: Ends of the helpers' pipe and of the caller's; zeros to write there.
HELPERS_READ, HELPERS_WRITE, CALLER_READ, CALLER_WRITE, ZEROS = range(952, 992, 8)
#: Sets of cores, a bit for each: those that the process may use, then a set for each helper.
CORES, CORES_BYTES = 1024, 128

_LEFT = (1 << 32) - 1
#: The most windows for which callers work alone, and how much more than alone launches may have taken.
_WINDOWS_MOST, _LOSS = 16, 1.15


def size(helpers: int) -> int:
    """Return the bytes of a team."""
    return CORES + CORES_BYTES * (1 + helpers)


def clock() -> int:
    """Return the ticks of this moment."""
    return ticks()


# ---- of both
@device
def take(team: int) -> int:
    """Take a chunk of the launch that is published; return its number, or -1 if all are taken."""
    while True:
        ticket = load(team + TICKET)
        left = ticket & _LEFT
        if left == 0:
            return -1
        if compare_exchange(team + TICKET, ticket, ticket - 1):
            return load(team + CHUNKS) - left


@device
def work(team: int) -> int:
    """Compute chunks until all are taken; return how many."""
    count = 0
    while True:
        chunk = take(team)
        if chunk < 0:
            return count
        call_address(load(team + ENTRY), load(team + BLOCK), chunk, chunk + 1)
        count += 1


@device
def core(team: int) -> int:
    """Return the number of this thread's core, -1 where the system does not tell."""
    function = load(team + GET_CORE)
    return call_c(function) if function != 0 else -1


# ---- of helpers
def serve(team: int, _: int) -> None:
    """Compute chunks of launches, as a helper, until the team stops."""
    cores = team + CORES + CORES_BYTES * (1 + fetch_add(team + BEGUN, 1))
    since = ticks()
    while load(team + STOP) == 0:
        here = core(team)
        in_the_way = here >= 0 and here == load(team + CORE) and not leave(team, here, cores)
        count = 0 if in_the_way else work(team)
        if count > 0:
            fetch_add(team + DONE, count)
            if load(team + WAITING) and exchange(team + WAITING, 0):
                call_c(load(team + WRITE), load(team + CALLER_WRITE), team + ZEROS, 1)
            since = ticks()
        elif not in_the_way and ticks() - since < load(team + ACTIVE):
            pause()
        else:
            # The byte that ends the read comes from the next launch that finds this helper asleep.
            fetch_add(team + ASLEEP, 1)
            if call_c(load(team + READ), load(team + HELPERS_READ), team + ZEROS, 1) < 1:
                return
            since = ticks()


@device
def leave(team: int, here: int, cores: int) -> bool:
    """Move this helper to other cores than one; return whether there are any."""
    for word in range(0, CORES_BYTES, 8):
        store(cores + word, load(team + CORES + word))
    at = cores + here // 64 * 8
    store(at, load(at) & ~(1 << (here & 63)))
    return here < 8 * CORES_BYTES and call_c(load(team + SET_CORES), 0, CORES_BYTES, cores) == 0


# ---- of callers
@device
def share(team: int, entry: int, block: int, chunks: int) -> bool:
    """Compute a launch together with the helpers; return False, at once, where the team is not to be had."""
    if compare_exchange(team + OWNED, 0, 1) == 0:
        return False
    start = ticks()
    if start < load(team + ALONE_UNTIL):
        store(team + OWNED, 0)
        return False
    store(team + ENTRY, entry)
    store(team + BLOCK, block)
    store(team + CHUNKS, chunks)
    store(team + CORE, core(team))
    store(team + DONE, 0)
    store(team + TICKET, (((load(team + TICKET) >> 32) + 1) & 0x7FFFFFFF) << 32 | chunks)
    if load(team + ASLEEP) > 0:
        call_c(load(team + WRITE), load(team + HELPERS_WRITE), team + ZEROS, exchange(team + ASLEEP, 0))
    count = work(team)
    worked = ticks() - start
    fetch_add(team + DONE, count)
    if load(team + DONE) < chunks:
        await_helpers(team, chunks, worked // max(count, 1))
    alone = worked * chunks // max(count, 1)
    judge(team, ticks() - start, alone)
    store(team + OWNED, 0)
    return True


@device
def await_helpers(team: int, chunks: int, usual: int) -> None:
    """Wait for the chunks that helpers hold: actively for as long as chunks take, then asleep."""
    began = ticks()
    patience = load(team + LATE) + 2 * usual
    while ticks() - began < patience:
        if load(team + DONE) == chunks:
            return
        pause()
    while True:
        exchange(team + WAITING, 1)
        if load(team + DONE) == chunks:
            break
        # A byte from a helper ends the read; so does a signal.
        call_c(load(team + READ), load(team + CALLER_READ), team + ZEROS, 1)
    exchange(team + WAITING, 0)


@device
def judge(team: int, took: int, alone: int) -> None:
    """Count what a launch took, and would have taken alone; where helpers cost time, do without for a
    while."""
    took += load(team + SHARED)
    alone += load(team + ALONE)
    window = load(team + WINDOW)
    if took > window:
        windows = 0
        if took > _LOSS * alone:
            windows = min(max(2 * load(team + WINDOWS), 1), _WINDOWS_MOST)
            store(team + ALONE_UNTIL, ticks() + windows * window)
            took = alone = 0
        store(team + WINDOWS, windows)
        took, alone = took // 2, alone // 2
    store(team + SHARED, took)
    store(team + ALONE, alone)
