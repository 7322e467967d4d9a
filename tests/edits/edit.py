"""An edit that breaks the library."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """An edit: in `file`, the text `old`, which occurs exactly once, becomes `new`.

    breaks: what is wrong afterwards.
    tests: the arguments of pytest that run the tests which cover it, in a few seconds.
    equivalent: for an edit that no test can notice, why not.
    """

    name: str
    file: str
    old: str
    new: str
    breaks: str
    tests: str
    equivalent: str = ""
