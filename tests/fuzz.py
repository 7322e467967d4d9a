"""Random small programs over the op table, evaluated by treepie and by NumPy in float64.

A program is a list of leaves and of steps; a step is a row, what it takes (numbers of earlier values, or
constant arrays) and its metadata. NumPy's side is the rows' oracles, so each has to be right about any
operand that another op can give it, not only about its own cases.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from treepie.autodiff import OPS, Tensor, value_and_grad
from treepie.autodiff.elementwise import Elementwise

FLOATS = [
    r
    for r in OPS.values()
    if isinstance(r, Elementwise) and "float64" in r.dtypes and not r.nondifferentiable
]
COMPARISONS = [OPS[n] for n in ("equal", "less", "greater_equal", "not_equal")]
LOGIC = [OPS[n] for n in ("logical_and", "logical_or", "logical_not")]
REDUCTIONS = [OPS[n] for n in ("sum", "mean", "max", "min", "var", "prod", "std", "norm") if n in OPS]
ROWWISE = [OPS[n] for n in ("softmax", "logsumexp")]
SCANS = [OPS[n] for n in ("cumsum", "sort") if n in OPS]
#: How far operands are from where an op jumps: there, the last bit of tanh decides between 0 and 1.
JUMPS = {
    "floor": lambda x: x - np.round(x),
    "ceil": lambda x: x - np.round(x),
    "round": lambda x: x - np.floor(x) - 0.5,
    "sign": lambda x: x,
    **dict.fromkeys([r.name for r in COMPARISONS], lambda a, b: a - b),
}
LIMIT = 50.0  # values stay below this, so that no rounding error grows out of proportion


@dataclass
class Step:
    row: Any
    args: list[Any]  # an int is the number of a value, an array is a constant
    attributes: dict[str, Any]


@dataclass
class Program:
    seed: int
    leaves: list[np.ndarray] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def __str__(self):
        lines = [f"seed {self.seed}"]
        lines += [f"v{k} = leaf {x.shape}" for k, x in enumerate(self.leaves)]
        for k, s in enumerate(self.steps, len(self.leaves)):
            args = ", ".join(f"v{a}" if isinstance(a, int) else f"{a.tolist()}" for a in s.args)
            lines.append(f"v{k} = {s.row}({args}, {s.attributes})")
        return "\n".join(lines)


def numpy_values(program, leaves):
    """Return all values of a program by the oracles."""
    values = list(leaves)
    for step in program.steps:
        args = [values[a] if isinstance(a, int) else a for a in step.args]
        values.append(np.asarray(step.row.oracle(*args, **step.attributes)))
    return values


def treepie_values(program, leaves):
    """Return all values of a program by treepie."""
    values = list(leaves)
    for step in program.steps:
        args = [values[a] if isinstance(a, int) else Tensor(np.array(a)) for a in step.args]
        values.append(step.row(*args, **step.attributes))
    return values


class Maker:
    """Grows a program step by step, looking at its values in NumPy."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.program = Program(seed)
        for _ in range(self.rng.integers(1, 4)):
            self.program.leaves.append(self.rng.uniform(-2, 2, self.shape()))
        self.values = list(self.program.leaves)

    def shape(self):
        rank = self.rng.choice([0, 1, 2, 2, 3])
        return tuple(int(n) for n in self.rng.choice([1, 2, 3, 5], rank))

    def pick(self, accept):
        found = [k for k, v in enumerate(self.values) if accept(v)]
        return int(self.rng.choice(found)) if found else None

    def floats(self, accept=lambda v: True):
        return self.pick(lambda v: v.dtype.kind == "f" and accept(v))

    def add(self, row, args, **attributes):
        """Add a step if its value is finite, bounded and small."""
        step = Step(row, args, attributes)
        given = [self.values[a] if isinstance(a, int) else a for a in args]
        if row.name in JUMPS and (np.abs(JUMPS[row.name](*given)) < 1e-6).any():
            return
        with np.errstate(all="ignore"):
            value = np.asarray(row.oracle(*given, **attributes))
        if value.size > 400 or value.ndim > 4:
            return
        if value.dtype.kind == "f" and not (np.abs(value) < LIMIT).all():
            return
        self.program.steps.append(step)
        self.values.append(value)

    def elementwise(self):
        row = self.rng.choice(FLOATS)
        args, shape = [], ()
        for k in range(len(row.vjp)):
            lo, hi = row.domain.get(k, (-2.0, 2.0)) if isinstance(row.domain, dict) else row.domain
            free = isinstance(row.domain, tuple) and row.domain == (-2.0, 2.0)

            def fits(v, shape=shape, lo=lo, hi=hi, free=free, k=k):
                wanted = "b" if k in row.cases[0].integers else "f"
                if v.dtype.kind != wanted or not _broadcast(v.shape, shape):
                    return False
                return wanted == "b" or free or not v.size or (v.min() >= lo and v.max() <= hi)

            found = self.pick(fits)
            if found is None:
                return
            args.append(found)
            shape = np.broadcast_shapes(shape, self.values[found].shape)
        self.add(row, args)

    def compare(self):
        a = self.floats()
        b = self.floats(lambda v: _broadcast(v.shape, self.values[a].shape))
        self.add(self.rng.choice(COMPARISONS), [a, b])

    def logic(self):
        row = self.rng.choice(LOGIC)
        a = self.pick(lambda v: v.dtype.kind == "b")
        if a is not None:
            b = self.pick(lambda v: v.dtype.kind == "b" and _broadcast(v.shape, self.values[a].shape))
            self.add(row, [a] if row.name == "logical_not" else [a, b])

    def reduce(self):
        x = self.floats(lambda v: v.size > 0)
        if x is None:
            return
        rank = self.values[x].ndim
        axes = [k for k in range(rank) if self.rng.random() < 0.5]
        axis = (
            None
            if self.rng.random() < 0.3
            else tuple(int(a) - rank * int(self.rng.integers(2)) for a in axes)
        )
        self.add(self.rng.choice(REDUCTIONS), [x], axis=axis, keepdims=bool(self.rng.integers(2)))

    def rowwise(self):
        x = self.floats(lambda v: v.ndim and v.shape[-1] > 0)
        if x is not None:
            self.add(self.rng.choice(ROWWISE), [x])

    def scan(self):
        x = self.floats(lambda v: v.ndim)
        if x is not None and SCANS:
            rank = self.values[x].ndim
            self.add(self.rng.choice(SCANS), [x], axis=int(self.rng.integers(-rank, rank)))

    def losses(self):
        x = self.floats(lambda v: v.ndim and v.shape[-1] > 0)
        if x is not None:
            shape = self.values[x].shape
            self.add(OPS["cross_entropy_rows"], [x, self.rng.integers(0, shape[-1], shape[:-1])])

    def arrange(self):
        x = self.floats()
        v = self.values[x]
        choice = self.rng.integers(6)
        if choice == 0:
            self.add(OPS["transpose"], [x], axes=tuple(int(a) for a in self.rng.permutation(v.ndim)))
        elif choice == 1:
            self.add(OPS["reshape"], [x], shape=(v.size,) if self.rng.random() < 0.5 else (*v.shape, 1))
        elif choice == 2:
            self.add(OPS["broadcast_to"], [x], shape=(int(self.rng.integers(0, 4)), *v.shape))
        elif choice == 3 and v.ndim:
            y = self.floats(lambda w: w.ndim == v.ndim and w.shape[1:] == v.shape[1:])
            self.add(OPS["concatenate"], [x, y], axis=0)
        elif v.ndim and v.size:
            starts, steps, sizes = [], [], []
            for n in v.shape:
                step = int(self.rng.choice([1, 1, 2, -1]))
                size = int(self.rng.integers(1, (n - 1) // abs(step) + 2))
                reach = (size - 1) * abs(step)
                low = int(self.rng.integers(0, n - reach))
                starts.append(low + reach if step < 0 else low)
                steps.append(step)
                sizes.append(size)
            self.add(OPS["strided_slice"], [x], starts=tuple(starts), steps=tuple(steps), sizes=tuple(sizes))

    def take(self):
        x = self.floats(lambda v: v.ndim and v.size)
        if x is not None:
            axis = int(self.rng.integers(self.values[x].ndim))
            indices = self.rng.integers(0, self.values[x].shape[axis], self.shape())
            self.add(OPS["take"], [x, indices], axis=axis)

    def matmul(self):
        a = self.floats(lambda v: v.ndim >= 2)
        if a is None:
            return
        flip_a, flip_b = (bool(self.rng.integers(2)) for _ in range(2))
        k = self.values[a].shape[-2 if flip_a else -1]
        b = self.floats(lambda v: v.ndim >= 2 and v.shape[-1 if flip_b else -2] == k)
        if b is None:
            return
        if _broadcast(self.values[a].shape[:-2], self.values[b].shape[:-2]):
            self.add(OPS["matmul"], [a, b], transpose_a=flip_a, transpose_b=flip_b)


def _broadcast(a, b):
    return all(m == n or 1 in (m, n) for m, n in zip(a[::-1], b[::-1], strict=False))


KINDS = (
    ["elementwise"] * 8 + ["reduce"] * 3 + ["arrange"] * 3 + ["matmul"] * 2
    + ["compare", "logic", "rowwise", "losses", "take", "scan"]
)  # fmt: skip


def make(seed):
    """Return the program of a seed."""
    maker = Maker(seed)
    for _ in range(maker.rng.integers(3, 12)):
        getattr(maker, str(maker.rng.choice(KINDS)))()
    return maker.program


def check_values(program):
    """Compare every value, in shape and within 1e-10 of the largest magnitude so far."""
    want = numpy_values(program, program.leaves)
    got = treepie_values(program, [Tensor(x.copy()) for x in program.leaves])
    for k, (w, g) in enumerate(zip(want, got, strict=True)):
        assert g.shape == w.shape, f"v{k} has shape {g.shape}, NumPy {w.shape}\n{program}"
        assert np.allclose(g.array, w, rtol=1e-10, atol=1e-10 * LIMIT), f"v{k} differs\n{program}"


def check_gradient(program):
    """Compare the derivative along a random direction with NumPy's differences; False at a kink."""
    rng = np.random.default_rng(program.seed)
    weights = [rng.standard_normal(v.shape) for v in numpy_values(program, program.leaves)]
    direction = [rng.standard_normal(x.shape) for x in program.leaves]

    def numeric(eps):
        ends = []
        for sign in (eps, -eps):
            values = numpy_values(
                program, [x + sign * d for x, d in zip(program.leaves, direction, strict=True)]
            )
            ends.append(
                sum((w * v).sum() for w, v in zip(weights, values, strict=True) if v.dtype.kind == "f")
            )
        return (ends[0] - ends[1]) / (2 * eps)

    def loss(leaves):
        values = treepie_values(program, leaves)
        floats = [(w, v) for w, v in zip(weights, values, strict=True) if v.dtype.kind == "f"]
        return sum(((v * w).sum() for w, v in floats), Tensor(np.zeros(())))

    with np.errstate(all="ignore"):
        near, far = numeric(1e-6), numeric(2e-6)
    _, grads = value_and_grad(loss)([Tensor(x.copy()) for x in program.leaves])
    exact = sum((g.array * d).sum() for g, d in zip(grads, direction, strict=True))
    if not abs(near - far) <= 1e-5 * max(1.0, abs(near)):
        return False
    assert abs(near - exact) <= 1e-4 * max(1.0, abs(near)), f"{exact} is not {near}\n{program}"
    return True
