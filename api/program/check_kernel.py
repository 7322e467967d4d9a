"""The check of kernels of one's own: the laws that the rows of the op table obey."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff import Tensor, check_grads, vjp
from treepie.autodiff.arguments import as_tensor, integer
from treepie.autodiff.own import Formula, Kernel
from treepie.autodiff.own.runs import BrokenLaw, between_bands, in_order, in_python
from treepie.autodiff.tensor import TensorLike

from .jit import jit

#: Largest difference of a kernel in float64 from its function in Python, relative to the largest element.
_RTOL = 1e-10

#: The laws without which no other one is tried.
_BOUNDS, _WRITES = "in bounds", "writes its outputs alone"

Array = NDArray[Any]


def check_kernel(kernel: Kernel | Formula, /, *arguments: TensorLike, seed: int = 0, **statics: Any) -> None:
    """Check a kernel of one's own against the laws of the op table, and print a table of them.

    kernel: made by `tp.kernel` or `tp.elementwise`.
    arguments: small arrays that it is called with. Floats that are all 0 stand for any numbers, and are drawn
        from a normal distribution; of others the elements are used, so that they stay in their range.
    seed: of what is drawn.  statics: static arguments.

    The laws: outputs are of the shape rule, and of the inputs' float dtype; the function in Python, with
    bounds checks and inputs that it cannot write to, gives the same; nothing is written outside of outputs
    and scratch, and every element of the outputs is; results have the same bits in any order of the ranges,
    on all threads, and in programs; NaN in an input reaches a result; empty arrays, those of one element and
    of odd sizes work, or the shape rule raises ValueError; gradients are linear, and agree with central
    differences, and so do those of gradients.

    Raises AssertionError where one does not hold.

    >>> import treepie as tp
    >>> cube = tp.elementwise(lambda x: x * x * x, vjp=lambda g, y, x: g * 3.0 * x * x, name="cube")
    >>> tp.check_kernel(cube, tp.zeros((3, 4)))
    check_kernel: cube
      writes its outputs alone  holds
      shapes and dtypes         (3, 4) of the inputs' dtype
      any order, any threads    same bits, 1 ranges
      programs                  holds
      NaN                       holds
      other sizes               6 work
      gradient is linear        holds
      gradient                  holds
      second order              holds
    """
    if not isinstance(kernel, Kernel | Formula):
        raise TypeError(
            f"check_kernel: kernel is a {type(kernel).__name__}, expected one of tp.kernel or tp.elementwise"
        )
    number = integer("check_kernel", "seed", seed, least=0)
    check = _Check(kernel, [as_tensor(a).array for a in arguments], statics, np.random.default_rng(number))
    rows = []
    for name, law in check.laws():
        holds, text = _outcome(law)
        rows.append((name, holds, text))
        if not holds and name in (_BOUNDS, _WRITES):  # what else is in memory, another call could destroy
            break
    width = max(len(name) for name, _, _ in rows)
    print(f"check_kernel: {kernel.__name__}")
    for name, _, text in rows:
        print(f"  {name:{width}}  {text}")
    broken = [f"{name}: {text}" for name, holds, text in rows if not holds]
    if broken:
        raise AssertionError(f"check_kernel: {kernel!r} breaks {len(broken)} laws\n  " + "\n  ".join(broken))


def _replaced(n: int, by: dict[int, int]) -> int:
    return by.get(n, n)


def _outcome(law: Callable[[], str | None]) -> tuple[bool, str]:
    """Return whether a law holds, and what is said about it."""
    try:
        return True, law() or "holds"
    except Exception as error:
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        return False, f"{kind}{error}"


class _Check:
    """The laws of a kernel, at arguments."""

    def __init__(
        self, kernel: Kernel | Formula, arrays: Sequence[Array], statics: dict[str, Any], rng: Any
    ) -> None:
        self._kernel, self._statics, self._rng = kernel, statics, rng
        self._given = arrays
        self._drawn = [self._elements(a, a.shape) for a in arrays]

    def laws(self) -> Iterator[tuple[str, Callable[[], str | None]]]:
        """Return the laws by name."""
        if isinstance(self._kernel, Kernel):
            yield _BOUNDS, self.in_bounds
        yield _WRITES, self.writes
        yield "shapes and dtypes", self.dtypes
        if isinstance(self._kernel, Kernel):
            yield "as in Python", lambda: self.as_in_python(self._arguments("float64"))
        yield "any order, any threads", self.order
        yield "programs", self.programs
        yield "NaN", self.nan
        yield "other sizes", self.sizes
        if self._kernel.rule is not None:
            yield "gradient is linear", self.linear
            yield "gradient", lambda: self.gradient(1)
            yield "second order", lambda: self.gradient(2)

    # ---- arguments
    def _elements(self, given: Array, shape: tuple[int, ...]) -> Array:
        """Return elements for a shape, like the given ones."""
        if given.dtype.kind == "f" and not given.any():
            return np.asarray(self._rng.standard_normal(shape).astype(given.dtype))
        if shape == given.shape:
            return given.copy()
        if not given.size:
            return np.zeros(shape, given.dtype)
        return np.asarray(self._rng.choice(given.ravel(), shape))

    def _arguments(self, dtype: str, resized: dict[int, int] | None = None) -> list[Tensor]:
        """Return the arguments with their floats in a dtype, and with some sizes replaced by others."""
        arrays = self._drawn
        if resized is not None:
            shapes = [tuple([_replaced(n, resized) for n in a.shape]) for a in self._given]
            arrays = [self._elements(a, s) for a, s in zip(self._given, shapes, strict=True)]
        return [Tensor(a.astype(dtype) if a.dtype.kind == "f" else a, None) for a in arrays]

    def _call(self, tensors: Sequence[Tensor]) -> list[Array]:
        results = self._kernel(*tensors, **self._statics)
        return [t.array for t in (results if isinstance(results, tuple) else (results,))]

    # ---- laws
    def dtypes(self) -> str:
        """Float outputs have the dtype of float inputs."""
        shown = ""
        for dtype in ("float32", "float64"):
            tensors = self._arguments(dtype)
            results = self._call(tensors)
            for a in results:
                if a.dtype.kind == "f" and a.dtype != dtype and any(t.dtype.kind == "f" for t in tensors):
                    raise BrokenLaw(f"inputs of {dtype} give an output of {a.dtype.name}")
            shown = ", ".join(str(a.shape) for a in results)
        return f"{shown} of the inputs' dtype"

    def in_bounds(self) -> None:
        """The function in Python has no index out of bounds, and writes to no input."""
        assert isinstance(self._kernel, Kernel)
        tensors = self._arguments("float64")
        in_python(self._kernel, tensors, self._static_arguments(tensors))

    def as_in_python(self, tensors: Sequence[Tensor]) -> None:
        """The function in Python gives the same."""
        assert isinstance(self._kernel, Kernel)
        want = in_python(self._kernel, tensors, self._static_arguments(tensors))
        for got, expected in zip(self._call(tensors), want, strict=True):
            scale = np.abs(np.nan_to_num(expected)).max(initial=0.0) or 1.0
            if not np.allclose(got, expected, rtol=0.0, atol=_RTOL * scale, equal_nan=True):
                difference = np.nanmax(np.abs(got - expected))
                raise BrokenLaw(f"compiled and in Python results differ by {difference:.3g}")

    def writes(self) -> None:
        """Nothing else than outputs and scratch is written, and each element of the outputs is."""
        for dtype in ("float32", "float64"):
            tensors = self._arguments(dtype)
            before = [t.array.copy() for t in tensors]
            statics = self._static_arguments(tensors)
            first, second = (between_bands(self._kernel.op, tensors, statics, f) for f in (0xA5, 0x5A))
            for t, a in zip(tensors, before, strict=True):
                if t.array.tobytes() != a.tobytes():
                    raise BrokenLaw("an input has changed")
            if first != second:
                raise BrokenLaw(
                    "an element of an output is not written, or depends on what scratch held before"
                )

    def _static_arguments(self, tensors: Sequence[Tensor]) -> dict[str, Any]:
        return self._kernel.op.bind(*tensors, **self._statics)[1]

    def order(self) -> str:
        """Ranges give the same bits in any order, and on all threads."""
        tensors = self._arguments("float32")
        want = [a.tobytes() for a in self._call(tensors)]
        statics, chunks = self._static_arguments(tensors), 0
        for backwards in (True, False):
            found, chunks = in_order(self._kernel.op, tensors, statics, backwards)
            if found != want:
                how = "ranges in another order" if backwards else "threads"
                raise BrokenLaw(f"{how} give other bits")
        return f"same bits, {chunks} ranges"

    def programs(self) -> None:
        """A program has the bits of eager calls."""
        tensors = self._arguments("float32")
        want = [a.tobytes() for a in self._call(tensors)]
        found = jit(lambda *a: self._kernel(*a, **self._statics))(*tensors)
        if [t.array.tobytes() for t in (found if isinstance(found, tuple) else (found,))] != want:
            raise BrokenLaw("a program gives other bits than a call")

    def nan(self) -> str | None:
        """NaN in all elements of an input reaches an output, if that depends on it."""
        tensors = self._arguments("float64")
        want = [a.tobytes() for a in self._call(tensors)]
        floats = [k for k, t in enumerate(tensors) if t.dtype.kind == "f" and t.size]
        for k in floats:
            x = tensors[k].array
            nan, *others = (
                self._call([*tensors[:k], Tensor(np.asarray(a), None), *tensors[k + 1 :]])
                for a in (np.full_like(x, np.nan), x.ravel()[::-1].reshape(x.shape), x * 0.5)
            )
            depends = any([a.tobytes() for a in other] != want for other in others)
            if depends and not any(np.isnan(r).any() for r in nan if r.dtype.kind == "f"):
                raise BrokenLaw(f"NaN in argument {k} gives no NaN")
        return None if floats else "no float arguments"

    def sizes(self) -> str:
        """Other sizes work as in Python, or the shape rule refuses them."""
        known = sorted({n for a in self._given for n in a.shape})
        tried, refused = 0, 0
        for n in known:
            for other in sorted({0, 1, n + 1}):
                tensors = self._arguments("float64", {n: other})
                try:
                    self._kernel.op.outputs([t.array for t in tensors], self._static_arguments(tensors))
                except ValueError:
                    refused += 1
                    continue
                tried += 1
                try:
                    if isinstance(self._kernel, Kernel):
                        self.as_in_python(tensors)
                    else:
                        self._call(tensors)
                except Exception as error:
                    raise BrokenLaw(f"with {other} in place of {n}: {error}") from None
        return f"{tried} work" + (f", {refused} are refused" if refused else "")

    # ---- gradients
    def _of_floats(self, tensors: Sequence[Tensor]) -> tuple[Callable[..., Any], list[Tensor]]:
        """Return the kernel as a function of the arguments that get a gradient, giving float outputs."""
        rule = self._kernel.gradients_of(tensors, self._static_arguments(tensors))
        floats = [k for k, t in enumerate(tensors) if t.dtype.kind == "f" and rule[k] is not None]

        def function(*values: Tensor) -> Any:
            full = list(tensors)
            for k, v in zip(floats, values, strict=True):
                full[k] = v
            found = self._kernel(*full, **self._statics)
            return [t for t in (found if isinstance(found, tuple) else (found,)) if t.dtype.kind == "f"]

        return function, [tensors[k] for k in floats]

    def linear(self) -> None:
        """Gradients are linear in that of the result."""
        function, at = self._of_floats(self._arguments("float64"))
        results, pullback = vjp(function, *at)
        g, h = ([self._rng.standard_normal(t.shape) for t in results] for _ in range(2))
        of_g, of_h, of_both = (
            [np.asarray(t.array) for t in pullback([Tensor(np.asarray(a), None) for a in row])]
            for row in (g, h, [2 * a - 3 * b for a, b in zip(g, h, strict=True)])
        )
        for a, b, both in zip(of_g, of_h, of_both, strict=True):
            scale = np.abs(both).max(initial=1.0)
            if not np.allclose(both, 2 * a - 3 * b, rtol=0.0, atol=1e-9 * scale):
                raise BrokenLaw("the gradient of 2 g - 3 h is not 2 times that of g less 3 times that of h")

    def gradient(self, order: int) -> None:
        """Gradients agree with central differences."""
        function, at = self._of_floats(self._arguments("float64"))
        if at:
            check_grads(function, tuple(at), order=order, seed=int(self._rng.integers(1 << 30)))
