"""Whether a state of training belongs to a model: by the shapes of its parameters."""

from __future__ import annotations

from treepie.autodiff import ptree, rng
from treepie.autodiff.program.shapes import ReadsValues, abstractly

from ..layer import Layer
from ..optim.flat import FlatLayout
from .state import Snapshot

Shape = tuple[int, ...]


class ModelOf:
    """Checks that states are of a model, each layout of parameters once.

    A model of the library's own layers computes with parameters of other sizes too, silently. What a user's
    `init` returns may depend on anything, so other models are not checked.
    """

    def __init__(self, model: Layer) -> None:
        self._model = model
        self._last: FlatLayout | None = None
        self._accepted: set[int] = set()
        self._shapes: dict[str, Shape] | None = None

    def check(self, function: str, at: Snapshot) -> None:
        """Raise ValueError, which names a parameter, for the snapshot of another model."""
        layout = at.buffers.layout
        if layout is self._last:
            return
        if self._model.pure and layout.key not in self._accepted:
            paths = [path for path, _ in ptree.flatten_with_paths(layout.numbered)]
            self._compare(function, dict(zip(paths, layout.shapes, strict=True)))
            self._accepted.add(layout.key)
        self._last = layout

    def _compare(self, function: str, shapes: dict[str, Shape]) -> None:
        expected = self._shapes
        if expected is None:
            expected = self._shapes = self._initial()
        advice = "expected a state of this trainer's model: trainer.init, or one that was trained with it"
        for path in (*shapes, *expected):
            if path not in expected:
                raise ValueError(f"{function}: st has {path!r}, which the model has not, {advice}")
            if path not in shapes:
                raise ValueError(f"{function}: st has no {path!r}, which the model has, {advice}")
            if shapes[path] != expected[path]:
                raise ValueError(
                    f"{function}: {path!r} of st has shape {shapes[path]} and that of the model "
                    f"{expected[path]}, {advice}"
                )

    def _initial(self) -> dict[str, Shape]:
        """Return the shapes of the parameters that the model begins with, by their paths."""
        try:
            params = abstractly(lambda _: self._model.init(rng.key(0)).params)
        except ReadsValues:
            params = self._model.init(rng.key(0)).params
        return {path: t.shape for path, t in ptree.flatten_with_paths(params)}
