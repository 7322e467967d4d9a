"""The program cache: programs by the trace they were planned from; the least recently used are evicted."""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping

from treepie.kernels import config

from ..trace.active import state
from ..trace.entry import Entry, root
from .instance import Arenas
from .program import Program, ProgramFamily

#: Marks a trace without a program: it was new when most traces were. It gets one if it comes again.
TRACED_ONCE = "traced once"

#: Marks arguments or a trace for which the function reads values: it has no program, and runs op by op.
EAGER = "eager"

#: Among this many recent calls, the number of new traces from which on planning costs more than it saves.
_WINDOW, _MANY = 32, 20


class ProgramCache:
    """The programs of one function, for any number of traces.

    subject: the name of the calls in messages, in the plural.
    """

    def __init__(self, subject: str) -> None:
        """Create an empty cache."""
        self.subject = subject
        self.arenas = Arenas()
        self._roots: dict[Hashable, Entry] = {}
        self._used: OrderedDict[ProgramFamily, tuple[Entry, Hashable]] = OrderedDict()
        self._last: ProgramFamily | None = None
        self._entries = 0
        self._reported: set[str] = set()
        self._recent: deque[bool] = deque(maxlen=_WINDOW)  # whether recent traces were new
        self._descriptions: deque[Mapping[str, str]] = deque(maxlen=4)

    @property
    def programs(self) -> list[Program]:
        """The programs, least recently used first."""
        return [p for family in self._used for p in family.programs.values()]

    def root(self, key: Hashable) -> Entry:
        """Return the entry where traces begin whose arguments have a structure, shapes and dtypes (`key`)."""
        if state.precision is not None or state.accuracy is not None:
            key = (state.precision, state.accuracy, key)
        entry = self._roots.get(key)
        if entry is None:
            entry = self._roots[key] = root()
            entry.key = key
        return entry

    def find(self, entry: Entry, key: Hashable) -> ProgramFamily | str | None:
        """Return the programs of the trace that ends at an entry; without any, a mark or None."""
        family: ProgramFamily | str | None = entry.programs.get(key)
        if family is None or family is TRACED_ONCE:
            return family
        self._recent.append(False)
        if family is not self._last:
            self._last = family  # type: ignore[assignment]
            if family in self._used:
                self._used.move_to_end(family)  # type: ignore[arg-type]
        return family

    def worth_planning(
        self, entry: Entry, key: Hashable, size: int, describe: Callable[[], Mapping[str, str]]
    ) -> bool:
        """Whether to plan a program for a new trace: unless most of the recent traces are new.

        size: the number of entries that it may have added to the tree.
        describe: returns name -> shapes of the call's inputs, for a message.
        """
        self._entries += size
        if self._entries > config.TRACE_ENTRIES:
            self._clear()
        self._recent.append(True)
        self._descriptions.append(describe())
        if sum(self._recent) < _MANY:
            return True
        entry.programs[key] = TRACED_ONCE
        self._report_changes()
        return False

    def add(self, entry: Entry, key: Hashable, family: ProgramFamily) -> None:
        """Add the programs of a trace; evict others while the cache is too large."""
        entry.programs[key] = family
        self._used[family] = (entry, key)
        while len(self._used) > 1 and sum([f.nbytes for f in tuple(self._used)]) > config.PROGRAM_BYTES:
            _, (evicted, evicted_key) = self._used.popitem(last=False)
            evicted.programs.pop(evicted_key, None)
            self._prune(evicted)

    def _prune(self, entry: Entry) -> None:
        """Remove an entry and its ancestors as far as they have neither children nor programs."""
        while not entry.children and not entry.programs:
            if entry.parent is None:
                self._roots.pop(entry.key, None)
                return
            for key in [k for k, child in entry.parent.children.items() if child is entry]:
                del entry.parent.children[key]  # it may have several names; see `trace/repeat.py`
            entry = entry.parent

    def _clear(self) -> None:
        """Remove all traces and programs."""
        self._roots.clear()
        self._used.clear()
        self._entries = 0
        self._last = None

    def release(self) -> None:
        """Free the memory of intermediate results; the next run allocates it again."""
        self.arenas.clear()

    def report_eager(self, reason: str) -> None:
        """Print on stderr, once for each reason, that calls run op by op."""
        if reason not in self._reported:
            self._reported.add(reason)
            print(
                f"treepie: {self.subject} run op by op, not as one program: {reason}",
                file=sys.stderr,
                flush=True,
            )

    def _report_changes(self) -> None:
        """Print on stderr, once, that most traces are new, and which input changes."""
        if "changes" in self._reported:
            return
        self._reported.add("changes")
        *earlier, last = self._descriptions
        for name, shapes in last.items():
            before = list(dict.fromkeys(d[name] for d in earlier if d.get(name, shapes) != shapes))
            if before:
                reason = f"{name}: {shapes} after {', '.join(before)}, ...: pad, or drop_last=True"
                break
        else:
            reason = "the ops that their Python calls change"
        print(
            f"treepie: most {self.subject} differ in structure or shapes, too many for a program each "
            f"({reason})",
            file=sys.stderr,
            flush=True,
        )
