"""Tables between the markers of README, which the benchmarks write and nobody else edits."""

import pathlib

README = pathlib.Path(__file__).parents[1] / "README.md"
END = "<!-- end -->\n"


def table(header, rows):
    """Return the lines of a Markdown table, of cells."""
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]


def cells(line):
    """Return the cells of a line of a table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def section(name):
    """Return what README has before a section, in it, and after it."""
    before, rest = README.read_text(encoding="utf-8").split(f"<!-- {name} -->\n")
    inside, after = rest.split(END, 1)
    return f"{before}<!-- {name} -->\n", inside, END + after


def rows(name):
    """Return the header and the rows, first cell -> cells, of a section's table."""
    lines = [cells(line) for line in section(name)[1].splitlines() if line.startswith("|")]
    return (lines[0] if lines else []), {line[0]: line for line in lines[2:]}


def write(name, caption, header, found):
    """Write a section: a line, and a table of the rows that were found; None keeps README's.

    Raises ValueError where a row to keep has other columns.
    """
    before, _, after = section(name)
    old_header, old = rows(name)
    merged = []
    for first, row in found.items():
        if row is None and first in old and old_header != header:
            raise ValueError(f"README's table has {old_header}, this run {header}: measure all models")
        if row is not None or first in old:
            merged.append(row or old[first])
    text = "\n".join([caption, "", *table(header, merged)]) + "\n"
    README.write_text(before + text + after, encoding="utf-8")
