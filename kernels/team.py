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
#: Whether callers work alone at present, which is judged once a window: ticks that launches took in this
#: window, their estimated work, ticks spent asleep; the rate of the last shared window; what the windows
#: are for, how many are left, for how many the last winner stays, and whether that was to work alone.
ALONE, TOOK, WORK, ASLEEP_FOR, RATE, PHASE, LEFT, STAY, WINNER = range(416, 488, 8)
#: Helpers that sleep, reading from a pipe; 1 while the caller does, reading from another.
ASLEEP, WAITING = 512, 640
#: 1 when helpers are to end; helpers that have begun.
STOP, BEGUN = 768, 776
#: Settings, in ticks: how long a helper waits actively before it sleeps, how late a chunk may be before the
#: caller does, and the length of a window.
ACTIVE, LATE, WINDOW = range(896, 920, 8)
#: C functions: read, write; sched_getcpu and sched_setaffinity, or 0.
READ, WRITE, GET_CORE, SET_CORES = range(920, 952, 8)
#: Ends of the helpers' pipe and of the caller's; zeros to write there.
HELPERS_READ, HELPERS_WRITE, CALLER_READ, CALLER_WRITE, ZEROS = range(952, 992, 8)
#: Sets of cores, a bit for each: those that the process may use, then a set for each helper.
CORES, CORES_BYTES = 1024, 128

_LEFT = (1 << 32) - 1
#: Phases: sharing is measured; working alone is measured; the faster of the two stays.
_SHARED, _ALONE, _STAY = range(3)
#: The most windows for which the faster stays. Of a window, callers must have slept for one part in so many
#: before working alone is tried.
_STAY_MOST, _ASLEEP_PART = 16, 8


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
def share(team: int, entry: int, block: int, chunks: int, work_ns: int) -> bool:
    """Compute a launch together with the helpers; return False, at once, where another thread has the team.

    work_ns: an estimate of its time, by which launches are compared.
    """
    if compare_exchange(team + OWNED, 0, 1) == 0:
        return False
    start = ticks()
    if load(team + ALONE):
        call_address(entry, block, 0, chunks)
    else:
        publish(team, entry, block, chunks)
        count = work(team)
        usual = (ticks() - start) // max(count, 1)
        fetch_add(team + DONE, count)
        if load(team + DONE) < chunks:
            await_helpers(team, chunks, usual)
    judge(team, ticks() - start, work_ns)
    store(team + OWNED, 0)
    return True


@device
def publish(team: int, entry: int, block: int, chunks: int) -> None:
    """Publish a launch, and wake helpers that sleep."""
    store(team + ENTRY, entry)
    store(team + BLOCK, block)
    store(team + CHUNKS, chunks)
    store(team + CORE, core(team))
    store(team + DONE, 0)
    store(team + TICKET, (((load(team + TICKET) >> 32) + 1) & 0x7FFFFFFF) << 32 | chunks)
    if load(team + ASLEEP) > 0:
        call_c(load(team + WRITE), load(team + HELPERS_WRITE), team + ZEROS, exchange(team + ASLEEP, 0))


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
    store(team + ASLEEP_FOR, load(team + ASLEEP_FOR) + ticks() - began)


@device
def judge(team: int, took: int, work_ns: int) -> None:
    """Count what a launch took; at the end of a window, decide how launches of the next one are computed."""
    took += load(team + TOOK)
    work_ns += load(team + WORK)
    if took > load(team + WINDOW):
        next_window(team, took, (took << 16) // max(work_ns, 1))
        took = work_ns = 0
    store(team + TOOK, took)
    store(team + WORK, work_ns)


@device
def next_window(team: int, took: int, rate: int) -> None:
    """Begin a window. rate: ticks for an estimated amount of work, in the one that has ended."""
    phase, alone = load(team + PHASE), 0
    if phase == _SHARED:
        if load(team + ASLEEP_FOR) * _ASLEEP_PART > took:
            store(team + RATE, rate)
            phase = alone = _ALONE
        else:
            store(team + STAY, 0)
    elif phase == _ALONE:
        alone = 1 if rate < load(team + RATE) else 0
        stay = load(team + STAY) * 2 if alone == load(team + WINNER) else 0
        stay = min(max(stay, 1), _STAY_MOST)
        store(team + STAY, stay)
        store(team + LEFT, stay)
        store(team + WINNER, alone)
        phase = _STAY
    else:
        left = load(team + LEFT) - 1
        store(team + LEFT, left)
        if left > 0:
            alone = load(team + WINNER)
        else:
            phase = _SHARED
    store(team + PHASE, phase)
    store(team + ALONE, alone)
    store(team + ASLEEP_FOR, 0)
