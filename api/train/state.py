"""The state of training, as users see it, and the memory that it is in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from treepie.autodiff import Tensor
from treepie.autodiff.program.instance import allocate, exclusive
from treepie.autodiff.ptree.structure import register_state
from treepie.autodiff.tensor import address_of

from ..layer import Vars
from ..optim.flat import FlatLayout
from ..optim.optimizers import Optimizer, OptState


class Buffers:
    """Parameters and moments in flat arrays: those of all parameters, then of each moment.

    own: whether training made the arrays. Whoever uses one holds a reference to it, as every view does, so
        that an array may be written to in place when nobody else holds one.
    """

    __slots__ = ("addresses", "arrays", "layout", "own")

    def __init__(self, layout: FlatLayout, arrays: list[np.ndarray], own: bool = False) -> None:
        self.layout, self.arrays, self.own = layout, arrays, own
        self.addresses = [address_of(a) for a in arrays]

    @staticmethod
    def of(optimizer: Optimizer, opt_state: OptState, params: Any) -> Buffers:
        """Return those of a state, without a copy where its leaves lie side by side."""
        flat, known = optimizer.buffers(opt_state, params)
        assert known.layout is not None
        return Buffers(known.layout, [t.array for t in (*flat, *[t for m in known.buffers for t in m])])

    def like(self) -> Buffers:
        """Return others of the same sizes, with whatever they hold."""
        return Buffers(self.layout, [allocate(a.shape, a.dtype) for a in self.arrays], own=True)

    def exclusive(self) -> bool:
        """Whether nobody else has any of the arrays."""
        return self.own and exclusive(self.arrays)

    def trees(self) -> tuple[Any, tuple[tuple[Tensor, ...], ...]]:
        """Return the tree of parameters, and the moments' buffers, as views."""
        views = [Tensor(a[:]) for a in self.arrays]
        count = len(self.layout.groups)
        rows = [tuple(views[k : k + count]) for k in range(0, len(views), count)] if count else [()]
        return self.layout.tree(rows[0]), tuple(rows[1:])


class Generation:
    """Training after a step: where everything is.

    moments: how many the optimizer keeps.  state: the model's.
    """

    __slots__ = ("buffers", "count", "dtype", "moments", "state", "step")

    def __init__(self, buffers: Buffers, moments: int, count: int, step: int, state: Any, dtype: Any) -> None:
        self.buffers, self.moments, self.count, self.step = buffers, moments, count, step
        self.state, self.dtype = state, dtype

    @property
    def now(self) -> Generation:
        """This one: what a state asks that nothing changes any more."""
        return self

    def shared(self) -> Generation:
        """Return the same, whose buffers others have too, so that they are not written to."""
        buffers = Buffers(self.buffers.layout, self.buffers.arrays)
        return Generation(buffers, self.moments, self.count, self.step, self.state, self.dtype)


@dataclass(frozen=True)
class TrainState:
    """Where training stands: the model's variables, the optimizer's state, the steps taken.

    A state that training made finds them when it is first asked.
    """

    vars: Vars
    opt_state: OptState
    step: int

    @staticmethod
    def of(source: Any) -> TrainState:
        """Return a state that asks for `source.now`, a `Generation`, when it is read."""
        made = object.__new__(TrainState)
        made.__dict__["_source"] = source
        return made

    def __getattr__(self, name: str) -> Any:
        """Find a field that is not there yet."""
        if name in ("vars", "opt_state", "step") and "_source" in self.__dict__:
            self.realize()
            return self.__dict__[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def realize(self) -> None:
        """Find everything, from now on whatever training does."""
        known = self.__dict__
        source = known.get("_source")
        if source is None:
            return
        at: Generation = source.now
        params, moments = at.buffers.trees()
        moments = moments[: at.moments]
        known["vars"] = Vars(params, at.state, at.dtype)
        known["opt_state"] = OptState(at.count, moments, at.buffers.layout)
        known["step"] = at.step
        known["_generation"] = at
        known.pop("_source", None)

    def settle(self) -> None:
        """Ask nobody but the `Generation` that there is now."""
        source = self.__dict__.get("_source")
        if source is not None:
            self.__dict__["_source"] = source.now

    @property
    def generation(self) -> Generation | None:
        """Where everything is, if training made it and it was not changed."""
        known = self.__dict__
        source = known.get("_source")
        return source.now if source is not None else known.get("_generation")

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields, to be pickled or copied."""
        self.realize()
        return {name: self.__dict__[name] for name in ("vars", "opt_state", "step")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the fields."""
        self.__dict__.update(state)


register_state(TrainState)


def generation_of(optimizer: Optimizer, st: TrainState) -> Generation:
    """Return where everything of a state is."""
    found = st.generation
    if found is None:
        buffers = Buffers.of(optimizer, st.opt_state, st.vars.params)
        count, state = st.opt_state.count, st.vars.state
        found = Generation(buffers, optimizer.moments, count, st.step, state, st.vars.dtype)
        st.__dict__["_generation"] = found  # a state does not change
    return found
