"""LSTM, GRU and Elman networks, as functions of tensors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from treepie.autodiff import Tensor, ops, zeros
from treepie.autodiff.arguments import as_float, as_tensor
from treepie.autodiff.tensor import TensorLike

from .linear import linear


class Lookup(NamedTuple):
    """A sequence of rows of a table, which are not gathered.

    table: (vocabulary, in).  indices: (batch, seq) integers.
    """

    table: Tensor
    indices: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes of the sequence, (batch, seq, in)."""
        return (*self.indices.shape, self.table.shape[1])

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """Type of the elements."""
        return self.table.dtype


def lstm(
    x: TensorLike | Lookup,
    h0: TensorLike | None,
    c0: TensorLike | None,
    weight_ih: TensorLike,
    weight_hh: TensorLike,
    bias_ih: TensorLike,
    bias_hh: TensorLike,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the hidden states (batch, seq, n) of a long short-term memory, and the last (h, c).

        i, f, g, o = split(x_t @ weight_ih + bias_ih + h @ weight_hh + bias_hh)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g);  h = sigmoid(o) * tanh(c)

    x: (batch, seq, in).  h0, c0: (batch, n), zeros for None.  weight_ih: (in, 4 n).  weight_hh: (n, 4 n).
    bias_ih, bias_hh: (4 n,). The gates' order i f g o is that of cuDNN and PyTorch, whose weights are
    transposed. ValueError for shapes that do not fit.

    Hochreiter & Schmidhuber 1997; Gers et al. 2000.

    >>> import treepie as tp
    >>> weights = (tp.zeros((3, 8)), tp.zeros((2, 8)), tp.zeros(8), tp.zeros(8))
    >>> states, (h, c) = tp.fn.lstm(tp.ones((4, 5, 3)), None, None, *weights)
    >>> states.shape, h.shape, c.shape
    ((4, 5, 2), (4, 2), (4, 2))
    """
    sequence, w, (h, c) = _checked("lstm", 4, x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0)
    x_gates = _product(sequence, weight_ih, as_tensor(bias_ih) + as_tensor(bias_hh))
    states, cells, _ = ops.lstm_steps(x_gates, h, c, w, zeros(w.shape[1:], w.dtype))
    return states, ((states[:, -1], cells[:, -1]) if sequence.shape[1] else (h, c))


def gru(
    x: TensorLike | Lookup,
    h0: TensorLike | None,
    weight_ih: TensorLike,
    weight_hh: TensorLike,
    bias_ih: TensorLike,
    bias_hh: TensorLike,
) -> tuple[Tensor, Tensor]:
    """Return the hidden states (batch, seq, n) of a gated recurrent unit, and the last one (batch, n).

        xr, xz, xn = split(x_t @ weight_ih + bias_ih);  hr, hz, hn = split(h @ weight_hh + bias_hh)
        r = sigmoid(xr + hr);  z = sigmoid(xz + hz);  h = (1 - z) * tanh(xn + r * hn) + z * h

    x: (batch, seq, in).  h0: (batch, n), zeros for None.  weight_ih: (in, 3 n).  weight_hh: (n, 3 n).
    bias_ih, bias_hh: (3 n,). The gates' order r z n, and the reset gate after the product, are those of cuDNN
    and PyTorch, whose weights are transposed. ValueError for shapes that do not fit.

    Cho et al. 2014.

    >>> import treepie as tp
    >>> weights = (tp.zeros((3, 6)), tp.zeros((2, 6)), tp.zeros(6), tp.zeros(6))
    >>> states, h = tp.fn.gru(tp.ones((4, 5, 3)), None, *weights)
    >>> states.shape, h.shape
    ((4, 5, 2), (4, 2))
    """
    sequence, w, (h,) = _checked("gru", 3, x, weight_ih, weight_hh, bias_ih, bias_hh, h0)
    states, _ = ops.gru_steps(_product(sequence, weight_ih, bias_ih), h, w, bias_hh)
    return states, states[:, -1] if sequence.shape[1] else h


def rnn(
    x: TensorLike | Lookup,
    h0: TensorLike | None,
    weight_ih: TensorLike,
    weight_hh: TensorLike,
    bias_ih: TensorLike,
    bias_hh: TensorLike,
) -> tuple[Tensor, Tensor]:
    """Return the hidden states (batch, seq, n) of an Elman network, and the last one (batch, n).

        h = tanh(x_t @ weight_ih + bias_ih + h @ weight_hh + bias_hh)

    x: (batch, seq, in).  h0: (batch, n), zeros for None.  weight_ih: (in, n).  weight_hh: (n, n).
    bias_ih, bias_hh: (n,). PyTorch's weights are transposed. ValueError for shapes that do not fit.

    Elman 1990.

    >>> import treepie as tp
    >>> weights = (tp.zeros((3, 2)), tp.zeros((2, 2)), tp.zeros(2), tp.zeros(2))
    >>> states, h = tp.fn.rnn(tp.ones((4, 5, 3)), None, *weights)
    >>> states.shape, h.shape
    ((4, 5, 2), (4, 2))
    """
    sequence, w, (h,) = _checked("rnn", 1, x, weight_ih, weight_hh, bias_ih, bias_hh, h0)
    x_part = _product(sequence, weight_ih, as_tensor(bias_ih) + as_tensor(bias_hh))
    states = ops.rnn_steps(x_part, h, w, zeros(w.shape[1:], w.dtype))
    return states, states[:, -1] if sequence.shape[1] else h


def _product(x: Tensor | Lookup, weight: TensorLike, bias: TensorLike) -> Tensor:
    """Return the inputs' contribution at all steps, x @ weight + bias, as one product."""
    if isinstance(x, Lookup):
        return ops.embedding_linear(x.table, x.indices, weight, bias)
    return linear(x, weight, bias)


def _checked(
    name: str,
    gates: int,
    x: TensorLike | Lookup,
    weight_ih: TensorLike,
    weight_hh: TensorLike,
    bias_ih: TensorLike,
    bias_hh: TensorLike,
    *states: TensorLike | None,
) -> tuple[Tensor | Lookup, Tensor, list[Tensor]]:
    """Return x, weight_hh and the initial states, zeros for None; ValueError for shapes that do not fit."""
    w, w_x = as_tensor(weight_hh), as_tensor(weight_ih)
    t = x if isinstance(x, Lookup) else as_float(name, x, like=w)
    n = w.shape[0] if w.ndim else 0
    wide = f"{gates} n" if gates > 1 else "n"
    if n < 1 or w.shape != (n, gates * n):
        raise ValueError(f"{name}: weight_hh has shape {w.shape}, expected (n, {wide})")
    if t.ndim != 3 or w_x.shape != (t.shape[2], gates * n):
        raise ValueError(
            f"{name}: x has shape {t.shape} and weight_ih {w_x.shape}, expected (batch, seq, in) and "
            f"(in, {gates * n})"
        )
    for argument, bias in (("bias_ih", as_tensor(bias_ih)), ("bias_hh", as_tensor(bias_hh))):
        if bias.shape != (gates * n,):
            raise ValueError(f"{name}: {argument} has shape {bias.shape}, expected ({gates * n},)")
    initial = [zeros((t.shape[0], n), dtype=t.dtype) if s is None else as_tensor(s) for s in states]
    return t, w, initial
