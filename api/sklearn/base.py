"""What the estimators share: the batches of a fit, and plans of what to train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from treepie.autodiff import Tensor, float32, ptree, rng

from ..data.pipeline import Data
from ..data.rows import Batches, array_of
from ..layer import Layer, Vars
from ..optim import Optimizer
from ..train.history import History
from ..train.state import TrainState
from ..train.trainer import Trainer


@dataclass
class Plan:
    """What an estimator trains, and how. A preset is a module with a function `plan` that returns one.

    prepare: X as it is passed to `fit` and `predict` (a data frame or an array) -> the layer's input: a
        float32 or integer array with a row for each example, or a tuple or dict of such arrays.
    layer: input -> outputs (examples, outputs).
    loss: function of (output, target), and of sample_weight where examples have weights.
    target: of the training set, as the loss takes it, with a row for each example.
    finish: outputs of the layer -> logits (examples, classes), or predictions (examples, targets); None where
        they are that already.
    callbacks: of `Trainer.fit`, before those of the user.
    rows: indices of the examples to train on; None for all of them.
    drop_last: whether a last batch that is short is left out.
    initial: key -> variables to begin with; None for those of `layer.init`.
    dtype: of the parameters: float32 or float64.

    It is pickled with the estimator.
    """

    prepare: Callable[[Any], Any]
    layer: Layer
    optimizer: Optimizer
    loss: Callable[..., Tensor]
    target: NDArray[Any]
    epochs: int
    batch_size: int
    finish: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    callbacks: Sequence[object] = ()
    rows: NDArray[Any] | None = None
    drop_last: bool = False
    initial: Callable[[Tensor], Vars] | None = None
    dtype: Any = float32

    def __getstate__(self) -> dict[str, Any]:
        """Return what predictions need: neither the targets nor the callbacks of the training."""
        return {**vars(self), "target": None, "rows": None, "callbacks": (), "initial": None}


class Network:
    """A layer in training: its plan and its state.

    history: losses of steps and epochs.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.trainer = plan, Trainer(plan.layer, plan.optimizer)
        self.state: TrainState | None = None
        self.history = History()

    def train(
        self,
        X: Any,
        weight: NDArray[Any] | None,
        random_state: np.random.RandomState,
        callbacks: Sequence[object] = (),
        verbose: bool = False,
    ) -> None:
        """Train from the current state, or from new parameters."""
        plan = self.plan
        arrays = (plan.prepare(X), plan.target, *([] if weight is None else [weight]))
        if plan.rows is not None:
            arrays = ptree.map(lambda a: a[plan.rows], arrays)
        state = self.state or self._start(random_key(random_state))
        self.state = self.trainer.fit(
            state,
            batches(arrays, plan.batch_size, random_state, plan.drop_last),
            rngs=random_key(random_state),
            loss=plan.loss,
            epochs=plan.epochs,
            history=self.history,
            progress=None if verbose else False,
            callbacks=[*plan.callbacks, *callbacks],
        )

    def _start(self, key: Tensor) -> TrainState:
        initial = self.plan.initial
        if initial is None:
            return self.trainer.init(key, self.plan.dtype)
        return self.trainer.make_state(initial(key))

    def outputs(self, X: Any) -> NDArray[Any]:
        """Return logits (examples, classes), or predictions (examples, targets)."""
        assert self.state is not None
        out = self.trainer.predict(self.state, self.plan.prepare(X)).numpy()
        return out if self.plan.finish is None else self.plan.finish(out)


def batches(
    arrays: tuple[Any, ...], size: int, random_state: np.random.RandomState | None, drop_last: bool = False
) -> Data[Any]:
    """Return a pipeline of the rows of arrays, in an order that is drawn for each pass as scikit-learn does.

    arrays: arrays, or trees of arrays, of one length; the first may be sparse.  random_state: None keeps the
        order.
    """
    length = len(ptree.leaves(arrays[-1])[0])
    order = None if random_state is None else _Order(random_state, length)
    first, *rest = arrays
    sparse = scipy.sparse.issparse(first)
    sources = ptree.map(array_of, tuple(rest) if sparse else arrays)
    batches = Batches(sources, False, size, length, order)
    count = length // size if drop_last else -(-length // size)
    if not sparse:
        data: Data[Any] = Data(count, batches.element)
        data._batches = batches
        return data

    def element(e: int, k: int) -> Any:
        rows = batches.rows(e, k)
        return (Tensor(first[rows].toarray(), None), *batches.read(e, rows))

    return Data(count, element)


class _Order:
    """The order of each pass: that of the pass before, permuted."""

    def __init__(self, random_state: np.random.RandomState, length: int) -> None:
        self._random_state, self._order, self._pass = random_state, np.arange(length), -1

    def of_pass(self, e: int) -> NDArray[np.int64]:
        """Return the indices of the rows in the order of pass e, the last one or a new one."""
        if e != self._pass:
            self._order, self._pass = self._order[self._random_state.permutation(len(self._order))], e
        return self._order


def random_key(random_state: np.random.RandomState) -> Tensor:
    """Return a pseudo-random key that is drawn from scikit-learn's random state."""
    return rng.key(int(random_state.randint(np.iinfo(np.int32).max)))
