"""`jit`: a function of trees of tensors as one program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from treepie.autodiff import Tensor
from treepie.autodiff.arguments import integer
from treepie.autodiff.capture import Counter, Recorder, blocks
from treepie.autodiff.captured import Captured, Outline
from treepie.autodiff.programs import Programs, get_num_threads
from treepie.autodiff.transform import compilations

from .closure import Environment
from .structure import Flat, flatten, rebuild


@dataclass(frozen=True)
class _Call:
    """The arguments of a call, taken apart; what the function reads besides; which givens are donated."""

    flat: Flat
    around: Environment
    donated: tuple[int, ...]

    def arguments(self, counts: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments, with others in the place of their counts."""
        return rebuild(self.flat.structure, iter(self.flat.tensors), iter(counts))  # type: ignore[no-any-return]


class Jitted(Programs[_Call, Any]):
    """A function that runs as one program once it was called twice with arguments of the same shapes."""

    def __init__(
        self,
        function: Callable[..., Any],
        donate: tuple[int, ...] = (),
        fallback: bool = False,
        calls: tuple[Callable[..., Any], ...] = (),
    ) -> None:
        """Take a function; see `jit`. calls: functions that it calls in ways that can not be seen."""
        super().__init__()
        functools.update_wrapper(self, function)
        self.function, self._donate, self._fallback, self._calls = function, donate, fallback, calls
        self.name = getattr(function, "__name__", type(function).__name__)
        self.subject = f"calls of {self.name}"

    def __repr__(self) -> str:
        """Show the function's name."""
        return f"jit({self.name})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function."""
        with compilations.watch():
            around = Environment.of(self.function, self._calls)
            if around.unknown is not None:
                self.refused(around.unknown)
                return self.function(*args, **kwargs)
            flat = flatten(f"jit: {self.name}, (args, kwargs)", (args, kwargs))
            tensors = [*flat.tensors, *around.tensors]
            givens, places = blocks(tensors)
            donated = self._donated(args, places)
            shapes = tuple((t.array.shape, t.array.dtype.char) for t in tensors)
            structure = (get_num_threads(), flat.structure, around.key, places, shapes)
            return self.call(structure, givens, _Call(flat, around, donated))[0]

    def _donated(self, args: tuple[Any, ...], places: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
        """Return the blocks that hold nothing but donated tensors."""
        if not self._donate:
            return ()
        owners = [k in self._donate for k, a in enumerate(args) for _ in flatten(self.name, a).tensors]
        kept: set[int] = set()
        given: set[int] = set()
        for k in range(max(len(places), len(owners))):
            block = places[k][0] if places else k
            (given if k < len(owners) and owners[k] else kept).add(block)
        return tuple(sorted(given - kept))

    def eager(self, arguments: _Call) -> Any:
        """Run op by op."""
        args, kwargs = arguments.arguments(arguments.flat.counts)
        return self.function(*args, **kwargs)

    def traced(self, recorder: Recorder, arguments: _Call) -> tuple[Any, Outline, Any]:
        """Run op by op, recorded."""
        recorder.arrays = {id(a): t for a, t in arguments.around.arrays}
        counts = [Counter(n, k) for k, n in enumerate(arguments.flat.counts)]
        args, kwargs = arguments.arguments(counts)
        result = flatten(f"jit: the result of {self.name}", self.function(*args, **kwargs))
        numbers = [int(c.value) if isinstance(c, Counter) else c for c in result.counts]
        made = rebuild(result.structure, iter(result.tensors), iter(numbers))
        outline = Outline.of(recorder, result.tensors, fresh=True)
        return made, outline, Flat([], result.counts, result.structure)

    def run(
        self,
        program: Captured,
        pattern: Flat,
        givens: Sequence[Tensor],
        arguments: _Call,
        spare: bool = False,
    ) -> Any:
        """Run a program."""
        counts = arguments.flat.counts
        tensors = program.run(givens, counts, spare)
        numbers = [counts[c.source] + c.offset if isinstance(c, Counter) else c for c in pattern.counts]
        return rebuild(pattern.structure, iter(tensors), iter(numbers))

    def named(self, result: Any) -> list[tuple[str, Tensor]]:
        """Return the tensors of a result."""
        return [(f"tensor {k} of the result", t) for k, t in enumerate(flatten(self.name, result).tensors)]

    def donated(self, arguments: _Call) -> Sequence[int]:
        """Return the numbers of donated givens."""
        return arguments.donated

    def refused(self, why: str) -> None:
        """Say that it runs op by op, or raise."""
        if not self._fallback:
            raise ValueError(
                f"jit: {self.name} can not run as one program: {why} (fallback=True runs it op by op)"
            )
        self.say(why)


def jit(
    function: Callable[..., Any] | None = None, donate: int | Sequence[int] = (), fallback: bool = False
) -> Any:
    """Return a function that runs as one program: forward, backward and update in one native call.

    function: takes and returns trees of tensors; states of optimizers, models and training too. Numbers,
        strings and None belong to the structure: for each other one the function is looked at anew, so what
        changes from call to call is passed as a tensor. NumPy's arrays become tensors.
    donate: numbers of positional arguments whose memory results may take. They are not read afterwards.
    fallback: run op by op, and say so once, where the function can not be one program; else ValueError
        says why: it reads values of tensors in Python, or things from outside that can not be looked into.

    The first call with arguments of some shapes runs op by op and is recorded, the second runs both ways and
    compares their bits, from the third on the program runs alone. What the function reads from outside, in
    its closure and its globals, is looked at in every call.

    >>> import treepie as tp
    >>> step = tp.jit(lambda w, x: w - 0.1 * tp.grad(lambda w: ((w * x) ** 2).sum())(w))
    >>> step(tp.tensor([1.0, 2.0]), tp.tensor([1.0, 0.5]))
    tensor([0.8, 1.9], dtype=float32)
    """
    if function is None:
        return functools.partial(jit, donate=donate, fallback=fallback)
    if not callable(function):
        raise TypeError(f"jit: function is a {type(function).__name__}, expected a function")
    numbers = [donate] if isinstance(donate, int) else donate
    return Jitted(function, tuple(integer("jit", "donate", n) for n in numbers), fallback)
