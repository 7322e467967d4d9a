"""The cells of CSV files: reading, types of columns, and errors that name line and column."""

from __future__ import annotations

import gzip
import io
import os
import re
import statistics
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff.arguments import described, index

NAME = "datasets.load_csv"

#: Texts of cells without a value.
_MISSING = frozenset(("", "?", "-", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "<NA>"))

#: Categories of a column above which its type must be named: names and keys have many.
_MOST_CATEGORIES = 100

_LARGEST = float(np.finfo(np.float32).max)

Kind = Literal["number", "category", "index"]
KINDS = ("number", "category", "index")


@dataclass(frozen=True)
class Column:
    """How a column becomes numbers.

    categories: of a "category" or an "index".  fill: the text in place of missing values.
    """

    name: str
    kind: Kind
    categories: tuple[str, ...]
    fill: str

    @property
    def features(self) -> list[str]:
        """The names of its features."""
        return [f"{self.name}={c}" for c in self.categories] if self.kind == "category" else [self.name]


@dataclass(frozen=True)
class Cells:
    """The cells of a file: columns by name, and the line of each row."""

    file: str
    lines: list[int]
    columns: dict[str, list[str]]

    def error(self, column: str, row: int, problem: str) -> ValueError:
        """Return an error about a cell."""
        return ValueError(f"{NAME}: {self.file}, line {self.lines[row]}, column {column!r}: {problem}")

    def name(self, argument: str, column: str | int) -> str:
        """Return the name of a column by its name or position, or raise ValueError."""
        names = list(self.columns)
        if isinstance(column, str):
            if column in self.columns:
                return column
        else:
            position = index(NAME, argument, column)
            if -len(names) <= position < len(names):
                return names[position]
        raise ValueError(
            f"{NAME}: {argument} has {described(column)}, which is no column of {self.file}, expected one of "
            f"{', '.join(map(repr, names))}"
        )

    def rows(self, kept: list[bool]) -> Cells:
        """Return some of the rows."""
        picked = [k for k, keep in enumerate(kept) if keep]
        columns = {name: [values[k] for k in picked] for name, values in self.columns.items()}
        return Cells(self.file, [self.lines[k] for k in picked], columns)


# ---- reading
def read(path: str | os.PathLike[str], delimiter: str, header: bool) -> Cells:
    """Return the cells of a file, or raise ValueError for lines of other lengths and for odd headers."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{NAME}: file is {described(path)}, expected a path")
    file = str(path)
    rows = _records(file, _text(file, _content(file)), delimiter)
    if not rows:
        raise ValueError(f"{NAME}: {file} is empty, expected lines of cells")
    names = rows[0][1] if header else [str(k) for k in range(len(rows[0][1]))]
    if header:
        _check_header(file, names, delimiter)
    body = rows[1:] if header else rows
    for line, cells in body:
        if len(cells) != len(names):
            raise ValueError(
                f"{NAME}: {file}, line {line}: {len(cells)} cells, expected {len(names)}: {', '.join(names)}"
            )
    columns = [[cells[k] for _, cells in body] for k in range(len(names))]
    return Cells(file, [line for line, _ in body], dict(zip(names, columns, strict=True)))


def _content(file: str) -> bytes:
    if re.match(r"(?:https?|ftp)://", file):
        raise ValueError(
            f"{NAME}: file is {file}, expected a path: download it first, such as with "
            "urllib.request.urlretrieve(address, path)"
        )
    path = Path(file).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{NAME}: {file} {what}, expected a CSV file")
    return path.read_bytes()


def _text(file: str, raw: bytes) -> str:
    try:
        content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{NAME}: {file}, line {line}: the text is not UTF-8, save it as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{NAME}: {file} is damaged, expected a gzip file ({error})") from None


def _records(file: str, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Return (line, cells) of each record; empty lines are left out."""
    import csv  # here, because `import treepie` does not need it

    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        for cells in reader:
            if cells:
                rows.append((reader.line_num, [c.strip() for c in cells]))
    except csv.Error as error:
        raise ValueError(f"{NAME}: {file}, line {reader.line_num}: {error}") from None
    return rows


def _check_header(file: str, names: list[str], delimiter: str) -> None:
    other = [d for d in ",;\t|" if d != delimiter and d in names[0]]
    if len(names) == 1 and other:
        raise ValueError(
            f"{NAME}: {file} has one column, {names[0]!r}; expected delimiter={other[0]!r} for its cells"
        )
    if all(map(is_number, names)):
        raise ValueError(f"{NAME}: {file} begins with numbers, no names; expected header=False")
    repeated = sorted(n for n, count in Counter(names).items() if count > 1)
    if repeated:
        raise ValueError(f"{NAME}: {file} has several columns {repeated[0]!r}, expected different names")


# ---- types
def is_missing(cell: str) -> bool:
    """Whether a cell has no value."""
    return cell in _MISSING


def is_number(cell: str) -> bool:
    """Whether a cell is a finite number of float32."""
    try:
        return "_" not in cell and abs(float(cell)) <= _LARGEST
    except ValueError:
        return False


def column_of(cells: Cells, name: str, kind: Kind | None, many: bool = False) -> Column:
    """Return how a column becomes numbers.

    kind: by default "number" or "category", whichever all cells are.  many: whether many categories are
    allowed then.
    """
    values = [c for c in cells.columns[name] if not is_missing(c)]
    if not values:
        raise ValueError(f"{NAME}: {cells.file}, column {name!r} has no values, expected drop=[{name!r}]")
    named = kind is not None
    kind = kind or _kind_of(cells, name, values)
    if kind == "number":
        numbers = [float(c) for c in values if is_number(c)]
        return Column(name, kind, (), repr(statistics.median(numbers)) if numbers else "")
    counts = Counter(values)
    if len(counts) > _MOST_CATEGORIES and not named and not many:
        raise ValueError(
            f"{NAME}: {cells.file}, column {name!r} has {len(counts)} different texts, such as "
            f"{values[0]!r}; expected drop=[{name!r}], types={{{name!r}: 'index'}} for an embedding, or "
            f"types={{{name!r}: 'category'}} for so many features"
        )
    categories = (
        sorted(counts, key=lambda c: (float(c), c)) if all(map(is_number, counts)) else sorted(counts)
    )
    return Column(name, kind, tuple(categories), max(categories, key=lambda c: counts[c]))


def _kind_of(cells: Cells, name: str, values: list[str]) -> Kind:
    """Return whether values are numbers or categories; raise ValueError where they are mixed."""
    count = sum(map(is_number, values))
    if count == len(values):
        return "number"
    if not count:
        return "category"
    rare = count * 2 < len(values)  # numbers among texts
    row = next(k for k, c in enumerate(cells.columns[name]) if not is_missing(c) and is_number(c) == rare)
    raise cells.error(
        name,
        row,
        f"{cells.columns[name][row]!r} is {'a number among texts' if rare else 'no number, as others are'}; "
        f"correct it, or pass types={{{name!r}: 'category'}}",
    )


# ---- numbers
def numbers(cells: Cells, column: Column) -> NDArray[np.float32]:
    """Return a column of numbers, or raise ValueError for the first text in it."""
    values = cells.columns[column.name]
    out = np.empty(len(values), np.float32)
    for row, cell in enumerate(values):
        if not is_number(cell):
            raise cells.error(column.name, row, f"{cell!r}, expected a finite number of float32")
        out[row] = float(cell)
    return out


def positions(cells: Cells, column: Column) -> NDArray[np.int32]:
    """Return the positions of a column's categories, or raise ValueError for another one."""
    known = {c: k for k, c in enumerate(column.categories)}
    values = cells.columns[column.name]
    for row, cell in enumerate(values):
        if cell not in known:
            raise cells.error(
                column.name, row, f"{cell!r} is none of the {len(known)} categories of the training data"
            )
    return np.array([known[cell] for cell in values], np.int32)


def encoded(cells: Cells, column: Column) -> NDArray[np.float32]:
    """Return the features of a column, (rows, features)."""
    if column.kind == "number":
        return numbers(cells, column)[:, None]
    at = positions(cells, column)
    if column.kind == "index":
        return at.astype(np.float32)[:, None]
    return np.eye(len(column.categories), dtype=np.float32)[at]


def complete(cells: Cells, columns: list[Column], target: Column | None, missing: str) -> Cells:
    """Return the cells with missing values dropped or filled, or raise ValueError for the first one."""
    used = [*columns, target] if target is not None else columns
    if missing == "drop":
        return cells.rows(
            [
                not any(map(is_missing, row))
                for row in zip(*[cells.columns[c.name] for c in used], strict=True)
            ]
        )
    filled = dict(cells.columns)
    for column in used:
        values = cells.columns[column.name]
        row = next((k for k, c in enumerate(values) if is_missing(c)), None)
        if row is None:
            continue
        if column is target:
            raise cells.error(column.name, row, "the target has no value, expected missing='drop'")
        if missing == "raise":
            count = sum(map(is_missing, values))
            problem = f"no value, as in {count} of {len(values)} rows; expected missing='drop' or 'fill'"
            raise cells.error(column.name, row, problem)
        filled[column.name] = [column.fill if is_missing(c) else c for c in values]
    return Cells(cells.file, cells.lines, filled)
