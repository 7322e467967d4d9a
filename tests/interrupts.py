"""KeyboardInterrupt at each line that runs: whatever is interrupted, what follows is right.

`Interrupt(k)` traces the lines of treepie's modules that run in a block and raises at the k-th. A scenario
(`interrupted.py`) is a call that is warm, so that nothing is compiled. `Check` interrupts it at one line
after the other until a run ends by itself, and has it look each time at what is left: results and states from
before, what `fit` hands out, the next calls.

`python -m tests.interrupts` interrupts everything at every line, each scenario in a process of its own, and
lists what it finds; names of scenarios choose, `calls` adds the places after calls, a number is how many
interrupts a scenario gets.
"""

import collections
import contextlib
import dis
import functools
import itertools
import linecache
import signal
import subprocess
import sys
from pathlib import Path

import treepie
import treepie.autodiff
import treepie.kernels
from treepie.autodiff.calls import explain_calls

#: Where the package's modules are, and those that run while something is compiled alone.
_ROOTS = [Path(p) for m in (treepie, treepie.autodiff, treepie.kernels) for p in m.__path__]
_KERNELS = Path(treepie.kernels.__path__[0])
_COMPILING = {_KERNELS / name for name in ("cache.py", "kernel.py", "native.py")}


@functools.cache
def is_runtime(file):
    """Whether a file is a module of treepie's that runs in a step: all but those that compile."""
    path = Path(file)
    return any(path.is_relative_to(r) for r in _ROOTS) and path not in _COMPILING


@functools.cache
def _after_calls(code):
    """Return the offsets of instructions that follow a call: there, too, CPython looks for signals."""
    rows = list(dis.get_instructions(code))
    return {b.offset for a, b in itertools.pairwise(rows) if a.opname.startswith("CALL")}


@functools.cache
def _leaving(code):
    """Return the offsets of instructions that are about to call the `__exit__` of a `with`.

    The line of a `with` comes again when its block has ended. No signal arrives there, between the last call
    of the block and that of `__exit__`, and no code could be right if one did: a lock would stay locked.
    """
    rows = list(dis.get_instructions(code))
    nones = [r.opname == "DUP_TOP" or (r.opname == "LOAD_CONST" and r.argval is None) for r in rows]
    found = set()
    for k, row in enumerate(rows):
        first = next((j for j in range(k, len(rows)) if rows[j].opname not in _SHUFFLES), k)
        if nones[first : first + 4] == [True, True, True, False]:
            found.add(row.offset)
    return found


_SHUFFLES = {"NOP", "POP_BLOCK", "ROT_TWO", "SWAP"}

#: The function around each public one, which explains wrong arguments.
_AROUND = explain_calls(len).__code__


@functools.cache
def _ended(code):
    """Return the offsets where the function around a public one returns what that one has returned.

    The call has ended by then. An interrupt there loses its result, as one in the caller does before the
    result is assigned: nothing but the instruction itself knows the result, so no code could be right.
    """
    rows = dis.get_instructions(code) if code is _AROUND else ()
    return {row.offset for row in rows if row.opname == "RETURN_VALUE"}


class Interrupt:
    """Raises KeyboardInterrupt at a point of a block: before a line, or after a call within one.

    points: how many there were until then.  where: the place.  files: what ran.
    """

    def __init__(self, at=-1, calls=False):
        self.at, self.calls, self.points, self.where, self.files = at, calls, 0, None, set()

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._entered)
        return self

    def __exit__(self, *error):
        sys.settrace(self._before)

    def _entered(self, frame, event, arg):
        file = frame.f_code.co_filename
        if not is_runtime(file):
            return None
        self.files.add(file)
        frame.f_trace_opcodes = self.calls
        return self._reached

    def _reached(self, frame, event, arg):
        if self._is_point(frame, event):
            self.points += 1
            if self.points == self.at + 1:
                file, line = frame.f_code.co_filename, frame.f_lineno
                text = linecache.getline(file, line).strip()
                self.where = f"{Path(file).parent.name}/{Path(file).name}:{line} {text}"
                if event == "opcode":
                    self.where += " (after a call)"
                raise KeyboardInterrupt
        return self._reached

    def _is_point(self, frame, event):
        code, at = frame.f_code, frame.f_lasti
        if event not in ("line", "opcode") or at in _leaving(code) or at in _ended(code):
            return False
        return event == "line" or at in _after_calls(code)


@contextlib.contextmanager
def within(seconds):
    """Raise TimeoutError in a block that takes longer, as one does that waits for a lock."""

    def late(number, frame):
        raise TimeoutError(f"nothing happened for {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Wrong(Exception):
    """What an interrupted call left behind is wrong."""


class Check:
    """Interrupts a scenario, and collects what is wrong.

    scenario: makes what has `run(interrupt)`, which runs the call once and raises Wrong.
    """

    def __init__(self, scenario, calls=False):
        self.scenario, self.calls = scenario, calls
        self.points = self.interrupted = 0
        self.wrong = collections.defaultdict(list)  # what -> where

    def run(self, most=None):
        """Interrupt at every point, or at about so many that are spread evenly."""
        ready = self._ready()
        for _ in range(2):  # the first may fill caches
            whole = Interrupt(calls=self.calls)
            self._try(ready, whole)
        self.points, k = whole.points, 0
        step = 1 if most is None else max(1, self.points // most)
        while True:
            interrupt = Interrupt(k, self.calls)
            if not self._try(ready, interrupt):
                ready = self._ready()  # what is broken once, may stay so
            if interrupt.where is None:
                return self
            self.interrupted += 1
            k += step

    def _try(self, ready, interrupt):
        """Run a scenario; return whether all was right."""
        try:
            with within(30):
                ready.run(interrupt)
        except Exception as error:  # all that comes out of it is wrong
            text = str(error) if isinstance(error, Wrong) else f"{type(error).__name__}: {error}"
            self.wrong[text].append(interrupt.where or "no interrupt")
            return False
        return True

    def _ready(self):
        with within(120):
            return self.scenario()

    def __str__(self):
        lines = [f"{self.points} points, {self.interrupted} interrupted, {self.count} wrong"]
        for text, places in sorted(self.wrong.items(), key=lambda row: -len(row[1])):
            lines.append(f"{len(places):5} {text}")
            lines += [f"        {n:4} at {w}" for w, n in collections.Counter(places).most_common(8)]
        return "\n".join(lines)

    @property
    def count(self):
        """How many interrupts left something wrong."""
        return sum(map(len, self.wrong.values()))


def main(arguments):
    """Interrupt scenarios, and list what is wrong."""
    from .interrupted import SCENARIOS  # which is made of this module

    most = next((int(a) for a in arguments if a.isdigit()), None)
    names = [a for a in arguments if a in SCENARIOS] or list(SCENARIOS)
    options = [a for a in arguments if a not in SCENARIOS]
    if len(names) == 1:
        print(f"{names[0]}: {Check(SCENARIOS[names[0]], 'calls' in arguments).run(most)}", flush=True)
        return
    for name in names:
        command = [sys.executable, "-X", "faulthandler", "-m", "tests.interrupts", name, *options]
        code = subprocess.run(command).returncode
        if code:
            print(f"{name}: the process ended with {code}", flush=True)


if __name__ == "__main__":
    from tests import interrupts  # whose Wrong is the one that scenarios raise

    interrupts.main(sys.argv[1:])
