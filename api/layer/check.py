"""The laws of layers, as one call: for layers of one's own, and for the table of all layers in the tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from treepie.autodiff import Tensor, check_grads, float32, float64, ptree, rng, value_and_grad
from treepie.autodiff.arguments import as_tensor

from .core import Context, Layer, Tree, Vars


def check(layer: Layer, input: Any, ctx: Context | None = None, seed: int = 0) -> None:
    """Raise AssertionError, with the reason, unless a layer obeys the laws of layers.

    In float32 and float64: parameters, state and results have the model's dtype, in evaluation and in
    training; two calls with the same key have the same bits; evaluation does not change the state, and
    training keeps its structure, shapes and dtypes; parameters may be flattened and rebuilt by `ptree`;
    every parameter has a gradient that is not all zero. In float64 the gradients of parameters and input
    equal central differences, in evaluation and in training.

    input: the layer's input, a tensor or a tree of tensors, of two or more examples and without ties or
        kinks of the layer. Floats are converted to each dtype.
    ctx: the tensors that accompany the call.  seed: seed of the key of parameters and dropout.

    >>> import treepie as tp
    >>> tp.layer.check(tp.layer.linear(3, 2), [[1.0, 2.0, 3.0], [4.0, 5.0, 6.5]])
    """
    for dtype in (float32, float64):
        _Laws(layer, input, ctx, seed, dtype).run()


class _Laws:
    """The laws for one dtype."""

    def __init__(self, layer: Layer, input: Any, ctx: Context | None, seed: int, dtype: np.dtype) -> None:
        self.layer, self.ctx, self.dtype = layer, ctx, dtype
        self.key, self.call_key = rng.split(rng.key(seed))
        self.x = ptree.map(lambda leaf: self._cast(as_tensor(leaf)), input)
        self.vars = layer.init(self.key, dtype)

    def _cast(self, t: Tensor) -> Tensor:
        return Tensor(t.array.astype(self.dtype), None) if t.dtype.kind == "f" else t

    def require(self, holds: bool, what: str) -> None:
        """Raise AssertionError unless a law holds."""
        if not holds:
            raise AssertionError(f"layer.check: {self.layer.name} in {self.dtype.name}: {what}")

    def apply(self, vars: Vars, training: bool, x: Any = None) -> tuple[Any, Vars]:
        """Apply the layer."""
        return self.layer.apply(
            vars, self.x if x is None else x, training=training, rngs=self.call_key, ctx=self.ctx
        )

    def run(self) -> None:
        """Check all laws."""
        self.own_dtype("parameter", self.vars.params)
        self.own_dtype("state", self.vars.state)
        self.require(self.vars.dtype == self.dtype, f"init gave Vars of dtype {self.vars.dtype}")
        for training in (False, True):
            self.results(training)
            self.gradients(training)

    def own_dtype(self, what: str, tree: Tree) -> None:
        """Floats have the model's dtype."""
        for path, leaf in ptree.flatten_with_paths(tree):
            dtype = as_tensor(leaf).dtype
            wrong = dtype.kind == "f" and dtype != self.dtype
            self.require(not wrong, f"{what} {path!r} is {dtype.name}, expected {self.dtype.name}")

    def results(self, training: bool) -> None:
        """Results have the model's dtype and repeat bit by bit; the state keeps its structure."""
        mode = "training" if training else "evaluation"
        (first, after), (second, _) = (self.apply(self.vars, training) for _ in range(2))
        self.own_dtype(f"result of {mode}", first)
        self.same_structure(f"a second call in {mode}, and its result", first, second)
        same = all(
            a.tobytes() == b.tobytes()
            for a, b in zip(
                map(np.asarray, ptree.leaves(first)), map(np.asarray, ptree.leaves(second)), strict=True
            )
        )
        self.require(same, f"two calls in {mode} with the same key gave different results")
        self.same_structure(f"state after {mode}", self.vars.state, after.state)
        if not training:
            same = all(
                np.array_equal(a, b, equal_nan=True)
                for a, b in zip(ptree.leaves(self.vars.state), ptree.leaves(after.state), strict=True)
            )
            self.require(same, "evaluation changed the state")
        leaves, rebuild = ptree.flatten(self.vars.params)
        rebuilt, _ = self.apply(self.vars.with_params(rebuild(leaves)), training)
        self.same_structure("result for parameters rebuilt by ptree.flatten", first, rebuilt)

    def same_structure(self, what: str, expected: Tree, actual: Tree) -> None:
        """Two trees have the same paths, shapes and dtypes."""

        def described(tree: Tree) -> list[str]:
            leaves = [(path, as_tensor(leaf)) for path, leaf in ptree.flatten_with_paths(tree)]
            return [f"{path} {t.shape} {t.dtype.name}".strip() for path, t in leaves]

        a, b = described(expected), described(actual)
        self.require(a == b, f"{what}: {b}, expected {a}")

    def gradients(self, training: bool) -> None:
        """Every parameter has a gradient; in float64 it equals the central difference."""
        mode = "training" if training else "evaluation"
        generator = np.random.default_rng(0)
        weights = [
            Tensor(np.asarray(generator.standard_normal(as_tensor(leaf).shape), self.dtype), None)
            for leaf in ptree.leaves(self.apply(self.vars, training)[0])
        ]

        def outputs(params: Tree, x: Any) -> list[Tensor]:
            results = ptree.leaves(self.apply(self.vars.with_params(params), training, x)[0])
            return [y for y in results if y.dtype.kind == "f"]

        def loss(params: Tree) -> Tensor:
            total = Tensor(np.zeros((), self.dtype), None)
            for y, w in zip(outputs(params, self.x), weights, strict=True):
                total = total + (y * w).sum()
            return total

        if ptree.leaves(self.vars.params):
            _, grads = value_and_grad(loss)(self.vars.params)
            for path, g in ptree.flatten_with_paths(grads):
                self.require(bool(g.array.any()), f"the gradient of {path!r} in {mode} is all zero")
                self.require(
                    bool(np.isfinite(g.array).all()), f"the gradient of {path!r} in {mode} is not finite"
                )
        if self.dtype == float64:
            try:
                check_grads(outputs, (self.vars.params, self.x))
            except AssertionError as error:
                self.require(False, f"gradients in {mode}: {error}")
