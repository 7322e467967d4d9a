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
        "b.select(failed, at(words, _FAILURE), at(words, _SUCCESS))",
        "at(words, _SUCCESS)",
        "an index out of bounds raises nothing",
        "tests/test_direct.py -k error",
    ),
    Edit(
        "direct-goes-on-after-an-error",
        "kernels/direct.py",
        "return b.select(failed, count, b.add(k, n64(1)))",
        "return b.add(k, n64(1))",
        "a launch after one that failed hides the error",
        "tests/test_direct.py -k later",
    ),
    Edit(
        "direct-ignores-counts",
        "kernels/direct.py",
        "    b.call(increment, [b.load(result)])\n",
        "",
        "each call takes a reference of None, until Python ends",
        "tests/test_direct.py -k counts",
    ),
]
