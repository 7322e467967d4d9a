"""The cache of programs: by what was traced, the least recently used go first."""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping

from treepie.kernels import config

from ..trace.entry import Entry, root
from .instance import Arenas
from .program import Program, ProgramFamily

#: What a structure has that was seen once, while most calls have a new one: those do not pay for a program.
SEEN = "seen"

#: Of so many calls, how many have a new structure where programs cost more than they save.
_WINDOW, _MANY = 32, 20


class ProgramCache:
    """Programs of one function, in any number of structures.

    subject: what runs, in the plural.
    """

    def __init__(self, subject: str) -> None:
        """Begin without any."""
        self.subject = subject
        self.arenas = Arenas()
        self._roots: dict[Hashable, Entry] = {}
        self._used: OrderedDict[ProgramFamily, tuple[Entry, Hashable]] = OrderedDict()
        self._last: ProgramFamily | None = None
        self._entries = 0
        self._said: set[str] = set()
        self._recent: deque[bool] = deque(maxlen=_WINDOW)
        self._descriptions: deque[Mapping[str, str]] = deque(maxlen=4)

    @property
    def programs(self) -> list[Program]:
        """The programs, those used longest ago first."""
        return [p for blueprint in self._used for p in blueprint.programs.values()]

    def root(self, key: Hashable) -> Entry:
        """Return the entry at which traces of a structure begin."""
        found = self._roots.get(key)
        if found is None:
            found = self._roots[key] = root()
            found.key = key
        return found

    def find(self, entry: Entry, key: Hashable) -> ProgramFamily | str | None:
        """Return what is known of traces that end at an entry; SEEN, or None, if there is no program."""
        found: ProgramFamily | str | None = entry.programs.get(key)
        if found is None or found is SEEN:
            return found
        self._recent.append(False)
        if found is not self._last:
            self._last = found  # type: ignore[assignment]
            if found in self._used:
                self._used.move_to_end(found)  # type: ignore[arg-type]
        return found

    def worth_planning(
        self, entry: Entry, key: Hashable, size: int, describe: Callable[[], Mapping[str, str]]
    ) -> bool:
        """Whether a structure that is new pays for a program: unless most are new.

        size: how many entries it may have added.
        """
        self._entries += size
        if self._entries > config.TRACE_ENTRIES:
            self._forget()
        self._recent.append(True)
        self._descriptions.append(describe())
        if sum(self._recent) < _MANY:
            return True
        entry.programs[key] = SEEN
        self._say_changes()
        return False

    def add(self, entry: Entry, key: Hashable, blueprint: ProgramFamily) -> None:
        """Keep programs, and let others go if there are too many."""
        entry.programs[key] = blueprint
        self._used[blueprint] = (entry, key)
        while len(self._used) > 1 and sum([b.nbytes for b in tuple(self._used)]) > config.PROGRAM_BYTES:
            _, (at, its_key) = self._used.popitem(last=False)
            at.programs.pop(its_key, None)
            self._prune(at)

    def _prune(self, entry: Entry) -> None:
        """Drop entries that lead nowhere any more."""
        while not entry.children and not entry.programs:
            if entry.parent is None:
                self._roots.pop(entry.key, None)
                return
            entry.parent.children.pop(entry.key, None)
            entry = entry.parent

    def _forget(self) -> None:
        """Drop everything: what comes again is planned again."""
        self._roots.clear()
        self._used.clear()
        self._entries = 0
        self._last = None

    def release(self) -> None:
        """Give back the memory of intermediate results; the next run takes new."""
        self.arenas.clear()

    def report_eager(self, why: str) -> None:
        """Say, once for each reason, that something runs op by op."""
        if why not in self._said:
            self._said.add(why)
            print(
                f"treepie: {self.subject} run op by op, not as one program: {why}",
                file=sys.stderr,
                flush=True,
            )

    def _say_changes(self) -> None:
        if "changes" in self._said:
            return
        self._said.add("changes")
        *others, now = self._descriptions
        for name, what in now.items():
            before = list(dict.fromkeys(d[name] for d in others if d.get(name, what) != what))
            if before:
                text = f"{name}: {what} after {', '.join(before)}, ...: pad, or drop_last=True"
                break
        else:
            text = "what their Python calls is new in most of them"
        print(
            f"treepie: most {self.subject} have a structure of their own, too many for programs to pay "
            f"({text})",
            file=sys.stderr,
            flush=True,
        )
