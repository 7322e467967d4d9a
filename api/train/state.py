"""The training state, as users see it, and the flat buffers that it is stored in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from treepie.autodiff import Tensor
from treepie.autodiff.arguments import described
from treepie.autodiff.ptree.structure import register_state
from treepie.autodiff.tensor import address_of
from treepie.kernels.memory import exclusive, recycled

from ..display import count_text, html_table, value_text
from ..errors import no_attribute
from ..layer import Vars
from ..optim.flat import FlatLayout
from ..optim.optimizer import Optimizer, OptState
from ..optim.rated import RatedStep


class FlatBuffers:
    """Parameters and moments in flat arrays: those of the parameters first, then those of each moment.

    frozen: the arrays of parameters that are not trained, which nothing writes to.
    owned: whether training allocated the arrays. Every user of an array holds a reference to it, as every
        view does, so that an owned array without other references may be written to in place.
    """

    __slots__ = ("addresses", "arrays", "frozen", "layout", "owned")

    def __init__(
        self,
        layout: FlatLayout,
        arrays: list[np.ndarray],
        owned: bool = False,
        addresses: list[int] | None = None,
        frozen: Sequence[np.ndarray] = (),
    ) -> None:
        """Take arrays, and their addresses where those are known."""
        self.layout, self.arrays, self.owned, self.frozen = layout, arrays, owned, frozen
        self.addresses = [address_of(a) for a in arrays] if addresses is None else addresses

    @staticmethod
    def of(optimizer: Optimizer, opt_state: OptState, params: Any) -> FlatBuffers:
        """Return the buffers of a state, without a copy where its leaves are adjacent in memory."""
        flat, flat_state = optimizer.buffers(opt_state, params)
        layout = flat_state.layout
        assert layout is not None
        moments = [t for moment in flat_state.buffers for t in moment]
        frozen = tuple(t.array for t in flat[layout.trained :])
        return FlatBuffers(layout, [t.array for t in (*flat[: layout.trained], *moments)], frozen=frozen)

    @property
    def parameters(self) -> list[np.ndarray]:
        """The arrays of the parameters, in the order of the layout's groups."""
        return [*self.arrays[: self.layout.trained], *self.frozen]

    @property
    def parameter_addresses(self) -> list[int]:
        """The addresses of `parameters`."""
        own = self.addresses[: self.layout.trained]
        return own + [address_of(a) for a in self.frozen] if self.frozen else own

    def empty_like(self) -> FlatBuffers:
        """Return uninitialized buffers of the same sizes."""
        arrays = [recycled(a.shape, a.dtype) for a in self.arrays]
        return FlatBuffers(self.layout, arrays, owned=True, frozen=self.frozen)

    def exclusive(self) -> bool:
        """Whether the arrays are exclusively owned, so that they may be written to in place."""
        return self.owned and exclusive(self.arrays)

    def whole(self) -> FlatBuffers:
        """Return buffers that hold all of the moments: these."""
        return self

    def trees(self) -> tuple[Any, tuple[tuple[Tensor, ...], ...]]:
        """Return the tree of parameters and the buffers of each moment, as views."""
        views = [Tensor(a[:], None) for a in self.arrays]
        count = self.layout.trained
        rows = [tuple(views[k : k + count]) for k in range(0, len(views), count)] if count else [()]
        frozen = [Tensor(a[:], None) for a in self.frozen]
        return self.layout.tree([*rows[0], *frozen]), tuple(rows[1:])


class Snapshot:
    """The state of training after one step, in flat buffers.

    moments: how many moments the optimizer keeps.  count: updates of the optimizer.  step: steps, skipped
    ones included.  state: the model's non-trainable state.  dtype: of the model.
    """

    __slots__ = ("buffers", "count", "dtype", "moments", "state", "step")

    def __init__(
        self, buffers: FlatBuffers, moments: int, count: int, step: int, state: Any, dtype: Any
    ) -> None:
        self.buffers, self.moments, self.count, self.step = buffers, moments, count, step
        self.state, self.dtype = state, dtype

    def whole(self) -> Snapshot:
        """Return the same snapshot with buffers that hold all of the moments."""
        buffers = self.buffers.whole()
        if buffers is self.buffers:
            return self
        return Snapshot(buffers, self.moments, self.count, self.step, self.state, self.dtype)

    @property
    def now(self) -> Snapshot:
        """The snapshot itself, for a `TrainState` whose source does not change."""
        return self

    def next(self, buffers: FlatBuffers, state: Any) -> Snapshot:
        """Return the snapshot after an update."""
        return Snapshot(buffers, self.moments, self.count + 1, self.step + 1, state, self.dtype)

    def skipped(self) -> Snapshot:
        """Return the snapshot after a skipped step, which still advances the key."""
        return Snapshot(self.buffers, self.moments, self.count, self.step + 1, self.state, self.dtype)

    def rated(self, learning_rate: Callable[[float], float]) -> Snapshot:
        """Return the same snapshot, for a step with another learning rate."""
        count = RatedStep(self.count, learning_rate)
        return Snapshot(self.buffers, self.moments, count, self.step, self.state, self.dtype)

    def shared(self) -> Snapshot:
        """Return the same snapshot with buffers that are never written to in place."""
        buffers = FlatBuffers(self.buffers.layout, self.buffers.arrays, frozen=self.buffers.frozen)
        return Snapshot(buffers, self.moments, self.count, self.step, self.state, self.dtype)


#: What models of other libraries have as attributes, and where it is here.
_ELSEWHERE = {
    "evaluate": "trainer.evaluate(st, data, metrics)",
    "fit": "trainer.fit(st, data, loss=...)",
    "grads": "tp.value_and_grad(function)(st.vars.params)",
    "model": "that of the trainer, trainer.model",
    "parameters": "st.vars.params",
    "params": "st.vars.params",
    "predict": "trainer.predict(st, x)",
    "save": "tp.checkpoint.save_state(directory, st)",
    "state": "st.vars.state",
    "weights": "st.vars.params",
}


@dataclass(frozen=True)
class TrainState:
    """The state of training: the model's variables, the optimizer's state, the number of steps.

    vars: `Vars(params, state, dtype)`.  opt_state: the optimizer's.  step: steps so far, skipped ones
        included.

    A state that training returns builds these trees when one of them is first read.

    >>> import treepie as tp
    >>> st = tp.Trainer(tp.layer.linear(3, 2), tp.optim.sgd(0.1)).init(rngs=tp.rng.key(0))
    >>> st.step, st.vars.params["weight"].shape
    (0, (3, 2))
    """

    vars: Vars
    opt_state: OptState
    step: int

    _tensor_hint: ClassVar[str] = "the parameters are st.vars.params"

    @staticmethod
    def of(source: Any) -> TrainState:
        """Return a state that is built of `source.now`, a `Snapshot`, when it is first read."""
        state = object.__new__(TrainState)
        state.__dict__["_source"] = source
        return state

    def __getattr__(self, name: str) -> Any:
        """Build the trees when one of them is first read."""
        if name in ("vars", "opt_state", "step") and "_source" in self.__dict__:
            self.realize()
            return self.__dict__[name]
        hint, message = _ELSEWHERE.get(name), f"'TrainState' object has no attribute {name!r}"
        raise no_attribute(f"{message}, expected {hint}") if hint else AttributeError(message)

    def _shown(self) -> dict[str, str]:
        """Return what a person is shown: steps, number of parameters, optimizer, dtype."""
        # Not of the trees where there is a snapshot: building them is for who reads them.
        at = self.snapshot
        if at is None or "vars" in self.__dict__:
            step, dtype = self.step, self.vars.dtype
            parameters, optimizer = count_text(self.vars.params), getattr(self.opt_state, "optimizer", "")
        else:
            layout, step, dtype = at.buffers.layout, at.step, at.dtype
            parameters, optimizer = f"{sum(map(math.prod, layout.shapes)):,}", layout.optimizer
        rows = {"step": value_text(step), "parameters": parameters, "optimizer": optimizer or "unknown"}
        return rows | {"dtype": value_text(dtype)}

    def __repr__(self) -> str:
        """Show the step, the optimizer and the number of parameters."""
        return f"TrainState({', '.join(f'{k}={v}' for k, v in self._shown().items())})"

    def _repr_html_(self) -> str:
        return html_table([], list(self._shown().items()), numbers=[1])

    def realize(self) -> None:
        """Build the trees; later steps do not change them."""
        fields = self.__dict__
        source = fields.get("_source")
        if source is None:
            return
        at: Snapshot = source.now.whole()
        params, moments = at.buffers.trees()
        fields["vars"] = Vars(params, at.state, at.dtype)
        fields["opt_state"] = OptState(at.count, moments[: at.moments], at.buffers.layout)
        fields["step"] = at.step
        fields["_snapshot"] = at
        fields.pop("_source", None)

    def detach(self) -> None:
        """Depend on the current snapshot alone, not on what runs the steps."""
        source = self.__dict__.get("_source")
        if source is not None:
            self.__dict__["_source"] = source.now.whole()

    @property
    def snapshot(self) -> Snapshot | None:
        """The snapshot that the state was built of; None for one that a user made."""
        fields = self.__dict__
        source = fields.get("_source")
        return source.now if source is not None else fields.get("_snapshot")

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields, for pickle and copy."""
        self.realize()
        return {name: self.__dict__[name] for name in ("vars", "opt_state", "step")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the fields."""
        self.__dict__.update(state)


register_state(TrainState)


def trained_snapshot_of(function: str, optimizer: Optimizer, st: TrainState) -> Snapshot:
    """Return the snapshot of a state to train on; ValueError for one of another optimizer."""
    snapshot = snapshot_of(function, optimizer, st).whole()
    layout = snapshot.buffers.layout
    optimizer.check_state(function, layout, snapshot.moments, lambda: snapshot.buffers.trees()[0])
    return snapshot


def check_state(function: str, st: Any) -> None:
    """Raise TypeError for other than a state."""
    if not isinstance(st, TrainState):
        expected = "expected a state, such as trainer.init(rngs=tp.rng.key(0))"
        raise TypeError(f"{function}: st is {described(st)}, {expected}")


def snapshot_of(function: str, optimizer: Optimizer, st: TrainState) -> Snapshot:
    """Return the snapshot of a state; TypeError for other than a state."""
    try:
        snapshot = st.snapshot
    except AttributeError:
        check_state(function, st)
        raise
    if snapshot is None:
        buffers = FlatBuffers.of(optimizer, st.opt_state, st.vars.params)
        count, state = st.opt_state.count, st.vars.state
        moments = len(st.opt_state.buffers)
        snapshot = Snapshot(buffers, moments, count, st.step, state, st.vars.dtype)
        st.__dict__["_snapshot"] = snapshot  # a state is immutable
    return snapshot


def has_parts(optimizer: Optimizer, st: TrainState) -> bool:
    """Whether ranks may update parts of the flat buffers, which cut the rows of a sparse table."""
    return optimizer.elementwise and not snapshot_of("Trainer.fit", optimizer, st).buffers.layout.sparse
