"""Recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treepie.autodiff import Tensor, rng
from treepie.autodiff.arguments import integer

from .. import fn
from ..pickling import constructor
from .core import Layer, Tree, Vars


@constructor
def lstm(in_features: int, hidden_size: int, return_sequences: bool = True) -> Layer:
    """Return a long short-term memory, (batch, seq, in_features) -> (batch, seq, hidden_size).

    return_sequences: False gives the last hidden state alone, (batch, hidden_size).

    Parameters: weight_ih (in_features, 4 n), weight_hh (n, 4 n), bias_ih and bias_hh (4 n,), n = hidden_size,
    gates in the order i f g o; from PyTorch's, transpose the weights. They begin uniform in +-1/sqrt(n).
    `fn.lstm` takes and gives hidden states.
    """
    return _recurrent(
        "lstm",
        4,
        in_features,
        hidden_size,
        return_sequences,
        lambda x, p: fn.lstm(x, None, None, **p)[0],
    )


@constructor
def gru(in_features: int, hidden_size: int, return_sequences: bool = True) -> Layer:
    """Return a gated recurrent unit, (batch, seq, in_features) -> (batch, seq, hidden_size).

    return_sequences: False gives the last hidden state alone, (batch, hidden_size).

    Parameters: weight_ih (in_features, 3 n), weight_hh (n, 3 n), bias_ih and bias_hh (3 n,), n = hidden_size,
    gates in the order r z n; from PyTorch's, transpose the weights. They begin uniform in +-1/sqrt(n).
    `fn.gru` takes and gives hidden states.
    """
    return _recurrent(
        "gru", 3, in_features, hidden_size, return_sequences, lambda x, p: fn.gru(x, None, **p)[0]
    )


def _recurrent(
    name: str,
    gates: int,
    in_features: int,
    hidden_size: int,
    return_sequences: bool,
    run: Callable[[Tensor, Tree], Tensor],
) -> Layer:
    for argument, size in {"in_features": in_features, "hidden_size": hidden_size}.items():
        if integer(f"layer.{name}", argument, size) < 1:
            raise ValueError(f"layer.{name}: {argument} is {size}, expected at least 1")
    wide = gates * hidden_size
    shapes = {
        "weight_ih": (in_features, wide),
        "weight_hh": (hidden_size, wide),
        "bias_ih": (wide,),
        "bias_hh": (wide,),
    }

    def init(rngs: Tensor, dtype: Any) -> Vars:
        bound, keys = hidden_size**-0.5, rng.split(rngs, len(shapes))
        params = {p: rng.uniform(keys[k], s, -bound, bound, dtype) for k, (p, s) in enumerate(shapes.items())}
        return Vars(params, {}, dtype)

    def apply(
        params: Tree, state: Tree, x: Tensor, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Tensor, Tree]:
        if x.ndim != 3 or x.shape[2] != in_features or not (x.shape[1] or return_sequences):
            raise ValueError(f"layer.{name}: x has shape {x.shape}, expected (batch, seq, {in_features})")
        states = run(x, params)
        return states if return_sequences else states[:, -1], state

    return Layer(init, apply, f"{name}({in_features}, {hidden_size})", pure=True)
