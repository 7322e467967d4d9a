"""Recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treepie.autodiff import Tensor, ops, rng

from .. import fn
from ..fn.recurrence import Lookup
from ..pickling import constructor
from .core import Layer, Tree, check_sizes, parametric
from .model import Call, assemble


@constructor
def lstm(in_features: int, hidden_size: int, return_sequences: bool = True) -> Layer:
    """Return a long short-term memory, (batch, seq, in_features) -> (batch, seq, hidden_size).

    return_sequences: False returns the last hidden state alone, (batch, hidden_size).

    Parameters: weight_ih (in_features, 4 n), weight_hh (n, 4 n), bias_ih and bias_hh (4 n,), n = hidden_size,
    gates in the order i f g o (for PyTorch's, transpose the weights); uniform in +-1/sqrt(n) at first.
    `fn.lstm` takes and returns hidden states. Hochreiter & Schmidhuber 1997.

    >>> import treepie as tp
    >>> model = tp.layer.lstm(4, 8)
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((2, 5, 4)))[0].shape
    (2, 5, 8)
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

    return_sequences: False returns the last hidden state alone, (batch, hidden_size).

    Parameters: weight_ih (in_features, 3 n), weight_hh (n, 3 n), bias_ih and bias_hh (3 n,), n = hidden_size,
    gates in the order r z n (for PyTorch's, transpose the weights); uniform in +-1/sqrt(n) at first.
    `fn.gru` takes and returns hidden states. Cho et al. 2014.

    >>> import treepie as tp
    >>> model = tp.layer.gru(4, 8, return_sequences=False)
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((2, 5, 4)))[0].shape
    (2, 8)
    """
    return _recurrent(
        "gru", 3, in_features, hidden_size, return_sequences, lambda x, p: fn.gru(x, None, **p)[0]
    )


@constructor
def rnn(in_features: int, hidden_size: int, return_sequences: bool = True) -> Layer:
    """Return an Elman network with tanh, (batch, seq, in_features) -> (batch, seq, hidden_size).

    return_sequences: False returns the last hidden state alone, (batch, hidden_size).

    Parameters: weight_ih (in_features, n), weight_hh (n, n), bias_ih and bias_hh (n,), n = hidden_size (for
    PyTorch's, transpose the weights); uniform in +-1/sqrt(n) at first. `fn.rnn` takes and returns hidden
    states. Elman 1990.

    >>> import treepie as tp
    >>> model = tp.layer.rnn(4, 8)
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((2, 5, 4)))[0].shape
    (2, 5, 8)
    """
    return _recurrent(
        "rnn", 1, in_features, hidden_size, return_sequences, lambda x, p: fn.rnn(x, None, **p)[0]
    )


def _recurrent(
    name: str,
    gates: int,
    in_features: int,
    hidden_size: int,
    return_sequences: bool,
    run: Callable[[Tensor | Lookup, Tree], Tensor],
) -> Layer:
    check_sizes(f"layer.{name}", in_features=in_features, hidden_size=hidden_size)
    wide = gates * hidden_size
    shapes = {
        "weight_ih": (in_features, wide),
        "weight_hh": (hidden_size, wide),
        "bias_ih": (wide,),
        "bias_hh": (wide,),
    }

    def params(rngs: Tensor, dtype: Any) -> dict[str, Tensor]:
        bound, keys = hidden_size**-0.5, rng.split(rngs, len(shapes))
        return {p: rng.uniform(keys[k], s, -bound, bound, dtype) for k, (p, s) in enumerate(shapes.items())}

    def function(params: Tree, x: Tensor | Lookup) -> Tensor:
        if x.ndim != 3 or x.shape[2] != in_features or not (x.shape[1] or return_sequences):
            raise ValueError(f"layer.{name}: x has shape {x.shape}, expected (batch, seq, {in_features})")
        states = run(x, params)
        return states if return_sequences else states[:, -1]

    layer = parametric(f"{name}({in_features}, {hidden_size})", params, function)
    layer.of_rows = lambda params, table, indices: function(params, Lookup(table, indices))
    return layer


@constructor
def bidirectional(layer: Layer) -> Layer:
    """Return two recurrent layers, one of which reads the sequence backward; outputs are concatenated.

    layer: `lstm`, `gru`, `rnn` or another layer of sequences (batch, seq, features), of which there are two
        copies with parameters of their own. Outputs of three axes are sequences, and concatenated position by
        position; others, of `return_sequences=False`, are the last states of both directions.

    Parameters and state: {"forward": ..., "backward": ...}. Schuster & Paliwal 1997.

    >>> import treepie as tp
    >>> model = tp.layer.bidirectional(tp.layer.lstm(4, 8))
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((2, 5, 4)))[0].shape
    (2, 5, 16)
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"layer.bidirectional: layer is a {type(layer).__name__}, expected a Layer")

    def forward(call: Call, x: Tensor) -> Tensor:
        if x.ndim != 3:
            raise ValueError(f"layer.bidirectional: x has shape {x.shape}, expected (batch, seq, features)")
        return both(call.forward(x), call.backward(ops.flip(x, 1)))

    def both(first: Tensor, second: Tensor) -> Tensor:
        return ops.concatenate([first, ops.flip(second, 1) if second.ndim == 3 else second], axis=-1)

    parts = {"forward": layer, "backward": layer}
    result, one = assemble(f"bidirectional({layer.name})", parts, forward), layer.of_rows
    if one is not None:
        result.of_rows = lambda params, table, indices: both(
            one(params["forward"], table, indices), one(params["backward"], table, ops.flip(indices, 1))
        )
    return result
