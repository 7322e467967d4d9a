"""The tensor: an immutable, C-contiguous CPU array, and the operators on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray

from treepie.kernels.config import DTYPES
from treepie.kernels.memory import address_of as address_of, aligned

from .deferred import Deferred
from .single import Single
from .trace.entry import Symbol

if TYPE_CHECKING:
    from .ops.advanced import At
    from .tape import Node

float32, float64, int32, int64, bool_ = DTYPES
#: The objects by whose identity ops compare dtypes first: `newbyteorder` returns others.
TENSOR_DTYPES = {d: d for d in DTYPES}

#: What functions accept as a tensor: a tensor, a NumPy array, a number, or nested lists of numbers.
TensorLike = Union["Tensor", NDArray[Any], np.generic, float, int, bool, list[Any], tuple[Any, ...]]
Data = NDArray[Any] | Symbol | Deferred  # what a tensor holds; others than arrays are computed when read
#: What functions accept as an index, as NumPy's: a tuple of these for several axes.
Index = int | slice | None | EllipsisType | TensorLike
#: The axes of a reduction; None is all of them.
Axis = int | tuple[int, ...] | None
#: What functions accept as a dtype: float32, float64, int32, int64 or bool, as NumPy spells them.
DType = np.dtype | type | str


def check_dtype(function: str, dtype: DType) -> np.dtype:
    """Return a dtype of tensors, or raise TypeError for another."""
    if dtype is float32 or dtype is float64:
        return dtype
    out: np.dtype | None = None
    with contextlib.suppress(TypeError):
        out = np.dtype(dtype)
    if out is None or out not in DTYPES:
        names = ", ".join(d.name for d in DTYPES) + " (sizes go into a tuple)" * isinstance(dtype, int)
        raise TypeError(f"{function}: dtype is {dtype!r}, expected one of {names}")
    return out


def copied(array: NDArray[Any]) -> Tensor:
    """Return a tensor with a copy of an array, whose dtype is one of those of tensors."""
    copy = aligned(array.shape, TENSOR_DTYPES[array.dtype])
    copy[...] = array
    return Tensor(copy, None)


#: The function `tensor`, which `convert.py` adds, since it imports this module.
conversion: list[Callable[[Any], Tensor]] = []


#: The node of `Tensor(data)`, as users may call it.
_UNCHECKED: Any = object()


class Tensor(Single):
    """An immutable CPU array: `tp.tensor` creates one, functions of treepie take and return them.

    It is C-contiguous, and its dtype is float32, float64, int32, int64 or bool. Operators broadcast
    and promote as NumPy's do; methods are the functions of the same names.

    >>> import treepie as tp
    >>> (tp.tensor([1.0, 2.0]) * 2).sum().item()
    6.0
    """

    __slots__ = ("__weakref__", "_address", "_data", "node", "output", "source")
    __array_priority__ = 1000  # so that NumPy's operators leave tensors to ours

    def __init__(self, data: TensorLike | Data, node: Node | None = _UNCHECKED, output: int = 0) -> None:
        """Copy data as `tensor` does. With a node or None, wrap an array that nothing else writes to."""
        self._data: Data = data  # type: ignore[assignment]
        self._address = 0
        self.node = node  # the call that computed it, while a gradient is being taken
        self.source: Tensor | None = None  # whose last two axes were exchanged
        if node is not None:
            self.output = output  # its position in the outputs of the node
            if node is _UNCHECKED:
                converted = conversion[0](data)
                self._data, self.node = converted._data, converted.node
                self.output = getattr(converted, "output", 0)

    @property
    def array(self) -> NDArray[Any]:
        """The elements, to be read only."""
        if type(self._data) is not np.ndarray and isinstance(self._data, Symbol | Deferred):
            self._data = self._data.read()
            if self.node is None:  # else the node holds it anyway, and a product reads it, as in a trace
                self.source = None
        return self._data

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return self._data.shape

    @property
    def dtype(self) -> np.dtype:
        """Type of the elements."""
        return self._data.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self._data.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._data.size

    @property
    def address(self) -> int:
        """Address of the first element."""
        if not self._address:
            self._address = address_of(self.array)
        return self._address

    def __len__(self) -> int:
        """Return the size of the first axis."""
        if not self.shape:
            raise TypeError("len: a tensor of shape () has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        """Show the elements and the dtype."""
        body = np.array2string(self.array, separator=", ", prefix="tensor(")
        return f"tensor({body}, dtype={self.dtype.name})"

    def numpy(self) -> NDArray[Any]:
        """Return the elements as a read-only NumPy array, without a copy.

        >>> import treepie as tp
        >>> tp.tensor([1, 2]).numpy()
        array([1, 2], dtype=int32)
        """
        data = self._data
        view: NDArray[Any] = (data if type(data) is np.ndarray else self.array)[...]
        view.setflags(write=False)
        return view

    def __array__(self, dtype: DType | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Convert for NumPy: read-only without a copy, unless a dtype or a copy is requested.

        Raises TypeError inside a gradient that depends on the tensor, which NumPy's functions would drop.
        """
        if self.node is not None:
            self._check_constant()
        out = self.numpy() if dtype is None else self.numpy().astype(dtype, copy=False)
        return out.copy() if copy else out

    def __dlpack__(self, **options: Any) -> Any:
        """Export the memory without a copy, read-only for consumers of DLPack 1.0 or later."""
        self._check_constant()
        if options.get("max_version", (0, 0)) >= (1, 0):
            return self.numpy().__dlpack__(**options)
        return self.array.__dlpack__(**{k: v for k, v in options.items() if k == "stream"})

    def _check_constant(self) -> None:
        """Refuse conversion to another library's array where that would silently drop a gradient."""
        if self.node is not None and self.node.active:
            raise TypeError(
                "tensor: a gradient is being taken that depends on it, and that another library's functions "
                "would lose; use treepie's functions, or tp.stop_gradient(x) or x.numpy() for a constant"
            )

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's device number of the CPU."""
        return self.array.__dlpack_device__()

    def tolist(self) -> Any:
        """Return the elements as nested lists of Python numbers, a number for shape ().

        >>> import treepie as tp
        >>> tp.tensor([[1, 2], [3, 4]]).tolist()
        [[1, 2], [3, 4]]
        """
        return self.array.tolist()

    def __iter__(self) -> Iterator[Tensor]:
        """Iterate over the first axis."""
        return (self[i] for i in range(len(self)))

    def __reduce__(self) -> Any:
        """Return a function and its arguments that rebuild it, for pickle."""
        return copied, (self.numpy(),)

    def __copy__(self) -> Tensor:
        """Return itself: it is immutable."""
        return self

    __hash__ = None  # type: ignore[assignment]

    # Operators and methods are ops: `ops/methods.py` binds them after the ops are defined.
    if TYPE_CHECKING:

        def __deepcopy__(self, memo: Any) -> Tensor:
            """Return a copy in separate memory."""

        @staticmethod
        def _stack(tensors: list[Tensor]) -> Tensor:
            """Return tensors of one shape joined along a new first axis."""

        def __add__(self, other: TensorLike) -> Tensor:
            """Return self + other."""

        def __radd__(self, other: TensorLike) -> Tensor:
            """Return other + self."""

        def __sub__(self, other: TensorLike) -> Tensor:
            """Return self - other."""

        def __rsub__(self, other: TensorLike) -> Tensor:
            """Return other - self."""

        def __mul__(self, other: TensorLike) -> Tensor:
            """Return self * other."""

        def __rmul__(self, other: TensorLike) -> Tensor:
            """Return other * self."""

        def __truediv__(self, other: TensorLike) -> Tensor:
            """Return self / other."""

        def __rtruediv__(self, other: TensorLike) -> Tensor:
            """Return other / self."""

        def __pow__(self, other: TensorLike) -> Tensor:
            """Return self ** other."""

        def __rpow__(self, other: TensorLike) -> Tensor:
            """Return other ** self."""

        def __matmul__(self, other: TensorLike) -> Tensor:
            """Return self @ other."""

        def __rmatmul__(self, other: TensorLike) -> Tensor:
            """Return other @ self."""

        def __neg__(self) -> Tensor:
            """Return -self."""

        def __abs__(self) -> Tensor:
            """Return the absolute values."""

        def __invert__(self) -> Tensor:
            """Return the logical not of bools."""

        def __and__(self, other: TensorLike) -> Tensor:
            """Return the logical and of bools."""

        def __or__(self, other: TensorLike) -> Tensor:
            """Return the logical or of bools."""

        def __lt__(self, other: TensorLike) -> Tensor:
            """Return self < other, element by element."""

        def __le__(self, other: TensorLike) -> Tensor:
            """Return self <= other, element by element."""

        def __gt__(self, other: TensorLike) -> Tensor:
            """Return self > other, element by element."""

        def __ge__(self, other: TensorLike) -> Tensor:
            """Return self >= other, element by element."""

        def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
            """Return self == other, element by element."""

        def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
            """Return self != other, element by element."""

        def __getitem__(self, index: Index) -> Tensor:
            """Select as NumPy does: by integers, slices, None, an ellipsis, integer arrays, bool masks."""

        @property
        def at(self) -> At:
            """Index updates that return new tensors: `x.at[index].set(v)` and `x.at[index].add(v)`."""

        @property
        def T(self) -> Tensor:
            """The tensor with its axes reversed."""

        def astype(self, dtype: DType) -> Tensor:
            """Return the elements converted to another dtype."""

        def reshape(self, *shape: int | Sequence[int]) -> Tensor:
            """Return the elements under another shape; one size may be -1."""

        def transpose(self, *axes: int | Sequence[int] | None) -> Tensor:
            """Return the tensor with its axes permuted, by default reversed."""

        def ravel(self) -> Tensor:
            """Return the elements on one axis."""

        def flatten(self) -> Tensor:
            """Return the elements on one axis."""

        def squeeze(self, axis: Axis = None) -> Tensor:
            """Return the tensor without axes of size 1."""

        def swapaxes(self, axis1: int, axis2: int) -> Tensor:
            """Return the tensor with two axes exchanged."""

        def repeat(self, repeats: int | Sequence[int], axis: int | None = None) -> Tensor:
            """Return each element, or slice of an axis, repeated."""

        def take(self, indices: TensorLike, axis: int | None = None) -> Tensor:
            """Return elements, or slices of an axis, at integer indices."""

        def sort(self, axis: int | None = -1, descending: bool = False) -> Tensor:
            """Return the elements sorted along an axis."""

        def argsort(self, axis: int | None = -1, descending: bool = False) -> Tensor:
            """Return the positions of the elements along an axis in ascending order."""

        def clip(self, low: TensorLike | None = None, high: TensorLike | None = None) -> Tensor:
            """Return the elements limited to a range."""

        def round(self) -> Tensor:
            """Return the nearest whole numbers, halves to the even one."""

        def sum(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
            """Return the sum over axes."""

        def mean(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
            """Return the mean over axes."""

        def prod(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
            """Return the product over axes."""

        def var(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
            """Return the variance over axes."""

        def std(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
            """Return the standard deviation over axes."""

        def cumsum(self, axis: int | None = None) -> Tensor:
            """Return running sums along an axis, by default of the flattened tensor."""

        def all(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
            """Return whether all elements over axes are true."""

        def any(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
            """Return whether any element over axes is true."""

        def max(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
            """Return the largest over axes."""

        def min(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
            """Return the smallest over axes."""

        def argmax(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
            """Return the position of the largest."""

        def argmin(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
            """Return the position of the smallest."""
