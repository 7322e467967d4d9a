"""How long a shuffled batch of `Data.prepare` takes, against NumPy's indexing by an array of integers.

    python perf/data.py

Bar: at most 2 times NumPy, with all that Python does around the kernel.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

import treepie as tp

CASES = [
    ((60000, 784), "float32", 128),
    ((60000, 784), "float32", 1024),
    ((1_000_000, 32), "float32", 4096),
    ((1_000_000,), "int32", 1024),
    ((100_000, 8), "float64", 32),
]


def main() -> None:
    """Print a table."""
    print(f"{'array':24} {'batch':>6} {'treepie us':>11} {'NumPy us':>9} {'ratio':>6} {'order us/batch':>15}")
    for shape, dtype, size in CASES:
        x = np.random.default_rng(0).random(shape).astype(dtype)
        count = min(200, shape[0] // size)
        key = tp.rng.key(0)
        data = tp.Data.prepare(x, size, shuffle=key)
        # Another order, since a batch that the other has just read is in the cache.
        order = tp.rng.permutation(tp.rng.key(1), shape[0]).numpy()
        begin = time.perf_counter()
        elements = iter(data)
        next(elements)
        shuffling = (time.perf_counter() - begin) * 1e6 / len(data)
        ours, numpys = [], []
        for k in range(1, count):
            begin = time.perf_counter()
            batch = next(elements)
            middle = time.perf_counter()
            want = x[order[k * size : (k + 1) * size]]
            end = time.perf_counter()
            ours.append(middle - begin)
            numpys.append(end - middle)
            assert batch.shape == want.shape
        a, b = (statistics.median(t) * 1e6 for t in (ours, numpys))
        name = f"{' x '.join(map(str, shape))} {dtype}"
        print(f"{name:24} {size:6} {a:11.0f} {b:9.0f} {a / b:6.2f} {shuffling:15.1f}")


if __name__ == "__main__":
    main()
