"""Edits of launch tables that are called as built-in functions."""

from .edit import Edit

EDITS = [
    Edit(
        "direct-holds-the-gil-for-long",
        "kernels/direct.py",
        "if not table.alone or sum(x.work_ns for x in launches) > _MOST_NS or not _supported():",
        "if not table.alone or not _supported():",
        "a large operation of one thread stops all other Python threads",
        "tests/test_direct.py -k gil",
    ),
    Edit(
        "direct-drops-errors",
        "kernels/direct.py",
        "(_FAILURE if failed else _SUCCESS)",
        "_SUCCESS",
        "an index out of bounds raises nothing",
        "tests/test_direct.py -k error",
    ),
    Edit(
        "direct-ignores-counts",
        "kernels/direct.py",
        "    call_c(load(words + _INCREMENT), result)\n",
        "",
        "each call takes a reference of None, until Python ends",
        "tests/test_direct.py -k counts",
    ),
]
