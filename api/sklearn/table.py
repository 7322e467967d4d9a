"""Tables of numbers and categories as arrays for a network: the preprocessing of RealMLP."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Columns = dict[str, Any]


class RobustScale:
    """Centers columns by their median, scales them by their interquartile range, and clips them smoothly.

    Where the quartiles are equal, half the range takes their place; a constant column becomes 0. The clip
    x / sqrt(1 + (x / 3)**2) has a slope of 1 at 0 and limits values to (-3, 3).

    table: (rows, columns); NaN is a missing value, and becomes 0, the median.
    """

    def __init__(self, table: NDArray[Any]) -> None:
        quartiles = np.zeros((5, table.shape[1]))
        known = ~np.isnan(table).all(axis=0)
        quartiles[:, known] = np.nanpercentile(table[:, known], [0, 25, 50, 75, 100], axis=0)
        low, first, self.median, third, high = quartiles
        width = np.where(third > first, third - first, 0.5 * (high - low))
        self.factor = np.divide(1.0, width, out=np.zeros_like(width), where=width > 0)

    def __call__(self, table: NDArray[Any]) -> NDArray[Any]:
        """Return scaled rows, float32."""
        x = np.nan_to_num((table - self.median) * self.factor)
        return np.asarray(x / np.sqrt(1.0 + (x / 3.0) ** 2), np.float32)


class Categories:
    """The codes of a column's values, 1 for the first of the training set; 0 for missing and new values."""

    def __init__(self, column: NDArray[Any]) -> None:
        values: dict[Hashable, None] = dict.fromkeys(v for v in column.tolist() if not _is_missing(v))
        self.codes = {value: code for code, value in enumerate(values, 1)}

    def __len__(self) -> int:
        """Return the number of codes, 0 included."""
        return len(self.codes) + 1

    def __call__(self, column: NDArray[Any]) -> NDArray[np.int32]:
        """Return the codes of values."""
        codes = self.codes
        return np.array([0 if _is_missing(v) else codes.get(v, 0) for v in column.tolist()], np.int32)


class Table:
    """The arrays of a data frame or an array, as the rows of its training set determine them.

    Columns of numbers are numbers; those of strings, objects, categories and bools are categories. Those of
    at most `one_hot` values become a column for each value, or one column of 1 and -1 for two values; a
    missing or new value has 0 in each. Numbers and these columns are scaled (`RobustScale`). Columns of more
    values become codes into one vocabulary, for an embedding.

    X: the rows of the training set.  one_hot: the most values of a column that is not embedded.

    Called with rows, it returns (rows, numbers + binary) float32, the numbers first, and where a column is
    embedded a tuple of that and the codes (rows, embedded) int32.
    """

    def __init__(self, X: Any, one_hot: int = 8) -> None:
        columns = _columns_of(X)
        self.names = list(columns)
        self.categories = {
            name: Categories(column) for name, column in columns.items() if not _is_number(column)
        }
        self.large = [name for name, codes in self.categories.items() if len(codes) > one_hot + 1]
        sizes = [len(self.categories[name]) for name in self.large]
        self.offsets = np.cumsum([0, *sizes]).astype(np.int32)
        self.numbers = len(columns) - len(self.categories)
        raw = self._unscaled(columns)
        #: The number of columns of small categories, and of codes.
        self.binary, self.vocabulary = raw.shape[1] - self.numbers, int(self.offsets[-1])
        self.scale = RobustScale(raw)

    def __call__(self, X: Any) -> Any:
        """Return the arrays of rows; ValueError for other columns than those of the training set."""
        columns = _columns_of(X)
        if list(columns) != self.names:
            raise ValueError(
                f"realmlp: X has the columns {_listed(columns)}, expected those of fit, {_listed(self.names)}"
            )
        table = self.scale(self._unscaled(columns))
        if not self.large:
            return table
        codes = [
            self.categories[name](_objects(columns[name])) + offset
            for name, offset in zip(self.large, self.offsets, strict=False)
        ]
        return table, np.stack(codes, axis=1)

    def _unscaled(self, columns: Columns) -> NDArray[Any]:
        """Return the numbers, and the columns of small categories."""
        rows = len(next(iter(columns.values()), ()))
        parts = [
            _floats(name, column)[:, None] for name, column in columns.items() if name not in self.categories
        ]
        for name, categories in self.categories.items():
            if name not in self.large:
                parts.append(_one_hot(categories(_objects(columns[name])), len(categories)))
        return np.concatenate([np.zeros((rows, 0)), *parts], axis=1)


def _one_hot(codes: NDArray[np.int32], size: int) -> NDArray[Any]:
    """Return the columns of codes below a size: none for 0, and one column of 1 and -1 for two others."""
    columns = np.eye(size)[codes][:, 1:]
    return columns if size != 3 else columns[:, :1] - columns[:, 1:]


def _columns_of(X: Any) -> Columns:
    """Return the columns of a data frame or an array (rows, columns) by their names."""
    names = getattr(X, "columns", None)
    if names is None:
        X = np.asarray(X)
        return {str(k): X[:, k] for k in range(X.shape[1])}
    return {str(name): X[name] for name in names}


def _is_number(column: Any) -> bool:
    """Return whether a column holds numbers: by its dtype, or by its values for one of Python objects."""
    dtype = column.dtype
    kind = getattr(dtype, "kind", None)
    if kind is None:  # polars
        return bool(dtype.is_numeric())
    if isinstance(column, np.ndarray) and kind == "O":
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in column.tolist())
    if kind in "mMc":
        raise TypeError(
            f"realmlp: a column of X has dtype {dtype}, expected numbers or categories; of times, take parts "
            "such as the year, the weekday or seconds"
        )
    return bool(kind in "iuf")


def _floats(name: str, column: Any) -> NDArray[np.float64]:
    """Return a column of numbers, NaN where one is missing; ValueError for an infinite one."""
    if hasattr(getattr(column, "dtype", None), "na_value"):  # an extension type of pandas
        column = column.to_numpy(dtype=np.float64, na_value=np.nan)
    values = np.asarray(column, np.float64)
    if np.isinf(values).any():
        raise ValueError(
            f"realmlp: column {name!r} of X has an infinite value, expected finite numbers or NaN"
        )
    return values


def _objects(column: Any) -> NDArray[Any]:
    return np.asarray(column, dtype=object)


def _is_missing(value: Any) -> bool:
    return value is None or type(value).__name__ in ("NAType", "NaTType") or bool(value != value)


def _listed(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
