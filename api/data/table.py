"""Tables of numbers and categories in CSV files, as arrays for `Data.prepare`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from treepie.autodiff import Tensor
from treepie.autodiff.arguments import described

from ..display import cut
from .cells import KINDS, NAME, Cells, Column, Kind, column_of, complete, encoded, numbers, positions, read


@dataclass(frozen=True, repr=False, eq=False)
class Table:
    """What `load_csv` returns.

    x: (rows, features) float32.  y: (rows,) float32, or int32 positions in `classes`; None without a target.
    columns: the names of the features, such as "color=red" for a category of the column "color".
    classes: the categories of the target, () where it is numbers.

    >>> import pathlib, tempfile
    >>> import treepie as tp
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "prices.csv"
    >>> size = file.write_text("area,price\\n50,100\\n80,150\\n")
    >>> tp.datasets.load_csv(file, target="price")
    Table(x: float32 (2, 1); y: float32 (2,); columns: area)
    """

    x: Tensor
    y: Tensor | None
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    _features: tuple[Column, ...]
    _target: Column | None

    def __repr__(self) -> str:
        """Show shapes, and the names of columns and classes."""
        y = "None" if self.y is None else f"{self.y.dtype.name} {self.y.shape}"
        names = f"columns: {', '.join(self.columns)}" + (
            f"; classes: {', '.join(self.classes)}" if self.classes else ""
        )
        return f"Table(x: float32 {self.x.shape}; y: {y}; {cut(names)})"


def load_csv(
    file: str | os.PathLike[str],
    target: str | int | None = None,
    *,
    types: Mapping[str, Kind] | None = None,
    missing: Literal["raise", "drop", "fill"] = "raise",
    drop: Sequence[str | int] = (),
    like: Table | None = None,
    delimiter: str = ",",
    header: bool = True,
) -> Table:
    """Return the numbers and categories of a CSV file, for `Data.prepare((table.x, table.y), batch_size=64)`.

    file: of UTF-8 text, gzipped or not.  target: the column to predict, by name or position.
    types: column -> "number"; "category", a feature of 0 or 1 for each category; or "index", one feature with
        the position of the category, for an embedding. By default columns of numbers are numbers, and those
        of other texts categories. A target of texts is classes; for classes that are written as numbers,
        pass types={target: "category"}.
    missing: what to do with cells that are empty, "NA", "NaN", "null", "None", "?" or "-": "raise", "drop"
        the row, or "fill" in the column's median or most frequent category.
    drop: columns to leave out.  like: the table of the training data, whose columns, categories and values to
        fill in hold for this file too; its target may be absent from it.
    delimiter: between cells.  header: whether the first line has the names, which are "0", "1" ... otherwise.

    Raises FileNotFoundError for a missing file, ValueError that names line and column of what can not be
    read.

    >>> import pathlib, tempfile
    >>> import treepie as tp
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "fruit.csv"
    >>> size = file.write_text("weight,color,fruit\\n150,red,apple\\n120,yellow,lemon\\n,red,apple\\n")
    >>> table = tp.datasets.load_csv(file, target="fruit", missing="fill")
    >>> table.columns, table.classes
    (('weight', 'color=red', 'color=yellow'), ('apple', 'lemon'))
    >>> table.x.tolist(), table.y.tolist()
    ([[150.0, 1.0, 0.0], [120.0, 0.0, 1.0], [135.0, 1.0, 0.0]], [0, 1, 0])
    """
    kinds = _checked_options(types, missing, like, delimiter)
    cells = read(file, delimiter, header)
    if like is not None:
        if target is not None or drop or types:
            raise ValueError(f"{NAME}: like has columns, types and a target, expected none besides")
        features, goal = _columns_like(cells, like)
        known = like._target
    else:
        features, goal = _columns(cells, target, {cells.name("types", c): k for c, k in kinds.items()}, drop)
        known = goal
    cells = complete(cells, list(features), goal, missing)
    x = np.concatenate(
        [np.empty((len(cells.lines), 0), np.float32), *[encoded(cells, c) for c in features]], axis=1
    )
    y = None
    if goal is not None:
        y = Tensor(numbers(cells, goal) if goal.kind == "number" else positions(cells, goal), None)
    names = tuple([name for c in features for name in c.features])
    return Table(Tensor(x, None), y, names, () if known is None else known.categories, features, known)


def _checked_options(
    types: Mapping[str, Kind] | None, missing: str, like: Table | None, delimiter: str
) -> dict[str, Kind]:
    """Return types as a dict, or raise for options that are none."""
    if missing not in ("raise", "drop", "fill"):
        raise ValueError(f"{NAME}: missing is {missing!r}, expected 'raise', 'drop' or 'fill'")
    if not isinstance(delimiter, str) or len(delimiter) != 1:
        raise ValueError(f"{NAME}: delimiter is {described(delimiter)}, expected one character")
    if like is not None and not isinstance(like, Table):
        raise TypeError(f"{NAME}: like is {described(like)}, expected the table of the training data")
    if not isinstance(types, Mapping | None):
        raise TypeError(f"{NAME}: types is {described(types)}, expected a dict, column -> type")
    for column, kind in (types or {}).items():
        if kind not in KINDS:
            raise ValueError(f"{NAME}: types[{column!r}] is {kind!r}, expected one of {', '.join(KINDS)}")
    return dict(types or {})


def _columns(
    cells: Cells, target: str | int | None, kinds: dict[str, Kind], drop: Sequence[str | int]
) -> tuple[tuple[Column, ...], Column | None]:
    """Return how the features and the target of a file become numbers."""
    goal = None if target is None else cells.name("target", target)
    if isinstance(drop, str | int):
        raise TypeError(f"{NAME}: drop is {drop!r}, expected a list of columns: [{drop!r}]")
    if goal is not None and kinds.get(goal) == "index":
        raise ValueError(f"{NAME}: types has 'index' for the target, expected 'category' or 'number'")
    left_out = {cells.name("drop", column) for column in drop} | {goal}
    features = tuple([column_of(cells, n, kinds.get(n)) for n in cells.columns if n not in left_out])
    return features, None if goal is None else column_of(cells, goal, kinds.get(goal), many=True)


def _columns_like(cells: Cells, like: Table) -> tuple[tuple[Column, ...], Column | None]:
    """Return the columns of the training data, all of whose features the file must have."""
    for column in like._features:
        if column.name not in cells.columns:
            raise ValueError(
                f"{NAME}: {cells.file} has no column {column.name!r}, expected those of the training data: "
                f"{', '.join(c.name for c in like._features)}"
            )
    goal = like._target
    return like._features, goal if goal is not None and goal.name in cells.columns else None
