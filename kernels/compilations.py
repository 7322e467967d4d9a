"""The kernels that a process compiles or loads: their number and time, and the line on stderr about them."""

import contextlib
import sys
import time
from collections.abc import Iterator

from . import cache, config


class Compilations:
    """Reports compilations that keep the user waiting, in one line on stderr; of several ranks, on the first.

    Inside `watch()` (one op, or a whole training step) the line starts when compiling has taken more than a
    second, and is completed with the time when the outermost `watch` ends.

    count, seconds: the kernels compiled, and the time that took.  loaded: the kernels read from disk.
    silent: whether the line is left out.
    """

    def __init__(self) -> None:
        self.count = self.loaded = 0
        self.seconds = 0.0
        self.silent = False
        self._depth = 0
        self._start = (0, 0.0)
        self._announced = False

    def watch(self) -> "Compilations":
        """Return a context manager that groups the compilations of a block of code into one line."""
        return self

    def __enter__(self) -> None:
        """Begin a block; nested blocks belong to it."""
        # A method of this class, since a training step of 15 us would spend 1 us on a generator.
        if self._depth == 0:
            self._start, self._announced = (self.count, self.seconds), False
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        """End a block, and complete its line if there is one."""
        self._depth -= 1
        if self._depth == 0 and self._announced:
            count, seconds = self.count - self._start[0], self.seconds - self._start[1]
            print(f" {count} kernel{'s' * (count != 1)} in {seconds:.1f} s", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Time one compilation."""
        with self.watch():
            start = time.perf_counter()
            yield
            self.count += 1
            self.seconds += time.perf_counter() - start
            if self._announced or self.silent or config.rank() > 0:
                return
            if self.seconds - self._start[1] > 1.0:
                self._announced = True
                where = cache.folder()
                kept = f"once, then kept in {where}" if where else "in memory only"
                print(
                    f"treepie: compiling kernels for this CPU ({kept}) ...",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )


compilations = Compilations()
