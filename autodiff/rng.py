"""Random numbers with explicit keys: the same key gives the same bits on every machine and thread count.

The generator is Threefry-2x32 with 20 rounds; `treepie.kernels.random` says bit by bit how an element
is made from the key and its index. Never draw twice from one key: split it, or fold a number in.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .arguments import as_float, integer, shape_of
from .ops.arithmetic import add, mul, sub
from .ops.compare import less
from .ops.random import (
    check_key,
    random_bits,
    random_fold,
    random_normal,
    random_split,
    random_uniform,
)
from .table import Shape
from .tensor import Tensor, TensorLike, check_dtype, float32


def key(seed: int) -> Tensor:
    """Return the key of a seed, an integer of up to 64 bits: its low and its high word."""
    bits = integer("rng.key", "seed", seed)
    if not -(2**63) <= bits < 2**64:
        raise ValueError(f"rng.key: seed is {seed}, expected an integer of 64 bits")
    bits %= 2**64
    return Tensor(np.array([bits % 2**32, bits >> 32], np.int64))


def split(key: Tensor, n: int = 2) -> Tensor:
    """Return n new keys, an (n, 2) tensor: `k1, k2 = rng.split(key)`."""
    if integer("rng.split", "n", n) < 1:
        raise ValueError(f"rng.split: n is {n}, expected at least 1")
    return random_split(key, n)


def fold_in(key: Tensor, data: int) -> Tensor:
    """Return the key of a key and an integer, such as an epoch or a layer's number."""
    number = integer("rng.fold_in", "data", data)
    if not 0 <= number < 2**62:
        raise ValueError(f"rng.fold_in: data is {data}, expected 0 to 2**62 - 1")
    return random_fold(key, Tensor(np.array(number, np.int64)))


def _float(name: str, dtype: Any) -> np.dtype:
    out = check_dtype(name, dtype)
    if out.kind != "f":
        raise TypeError(f"{name}: dtype is {out.name}, expected float32 or float64")
    return out


def uniform(
    key: Tensor,
    shape: Shape = (),
    low: TensorLike = 0.0,
    high: TensorLike = 1.0,
    dtype: Any = float32,
) -> Tensor:
    """Return numbers uniform in [low, high): low + (high - low) * u, u a multiple of 2**-24 (2**-53)."""
    u = random_uniform(key, shape_of("rng.uniform", shape), _float("rng.uniform", dtype))
    if isinstance(low, float | int) and isinstance(high, float | int):
        if not low < high:
            raise ValueError(f"rng.uniform: low is {low} and high {high}, expected low < high")
        if (low, high) == (0, 1):
            return u
    return add(mul(u, sub(high, low)), low)


def normal(key: Tensor, shape: Shape = (), dtype: Any = float32) -> Tensor:
    """Return numbers of the standard normal distribution (Box & Muller 1958)."""
    return random_normal(key, shape_of("rng.normal", shape), _float("rng.normal", dtype))


def bernoulli(key: Tensor, p: TensorLike, shape: Shape | None = None) -> Tensor:
    """Return bools that are true with probability p, by default of p's shape."""
    chance = as_float("rng.bernoulli", p)
    if ((chance.array < 0) | (chance.array > 1)).any():
        raise ValueError(f"rng.bernoulli: p is {p}, expected 0 to 1")
    return less(uniform(key, chance.shape if shape is None else shape, dtype=chance.dtype), chance)


def permutation(key: Tensor, n: int) -> Tensor:
    """Return the integers 0..n-1 in random order, int64: the order that sorts n draws of 64 bits."""
    if integer("rng.permutation", "n", n) < 0:
        raise ValueError(f"rng.permutation: n is {n}, expected 0 or more")
    check_key("rng.permutation", key)
    return Tensor(np.argsort(random_bits(key, (n,)).array, kind="stable"))
