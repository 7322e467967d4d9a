"""Random models, losses and data whose Python is another in every call, as source text."""

import random
import re
from dataclasses import dataclass, field

from . import fuzz_python, fuzz_values

#: The width of everything.
D = 4

HEADER = """\
import array, collections, contextlib, contextvars, copy, dataclasses, fractions, functools, importlib, io
import itertools, operator, pickle, random, sys, threading, types, weakref
import numpy as np
import treepie as tp

# `Trainer` and `jit` are treepie's, or those of tests/eager.py.
FT, D = np.{dtype}, {D}
random.seed({seed})
call, log, kept, aux, queue, sink = 0, [], [], {{}}, collections.deque(), io.StringIO()
me, rate, states = types.SimpleNamespace(), {{"lr": 0.05}}, []
data = np.random.default_rng({seed})
X, Y = data.standard_normal((6, D, D)).astype(FT), data.integers(0, D, (6, D))
"""

OPTIMIZERS = [
    "tp.optim.sgd(0.1)",
    "tp.optim.sgd(0.1, momentum=0.9)",
    "tp.optim.sgd(0.1, momentum=0.9, nesterov=True)",
    "tp.optim.adam(0.05)",
    "tp.optim.adamw(0.05, weight_decay=0.1)",
    "tp.optim.adamw(0.05, mask=lambda params: tp.ptree.map(lambda p: p.ndim > 1, params))",
    "tp.optim.rmsprop(0.02)",
    "tp.optim.rmsprop(0.02, momentum=0.9)",
    "tp.optim.adagrad(0.1)",
    "tp.optim.sgd(lambda step: 0.1 / step)",
    "tp.optim.adam(lambda step: rate['lr'])",
    "tp.optim.adam(tp.optim.schedule.cosine_decay(0.05, 10))",
]

ENDS = [
    "return tp.loss.cross_entropy_sparse(h, y)",
    "return tp.loss.cross_entropy(h, np.eye(D, dtype=FT)[np.asarray(y)])",
    "return tp.loss.cross_entropy(h, np.eye(D)[np.asarray(y)], label_smoothing=0.1)",
    "return tp.loss.mse(h, tp.one_hot(y, D))",
    "return ((h - np.eye(D, dtype=FT)[np.asarray(y)]) ** 2).mean()",
    "return tp.loss.huber(h, np.eye(D)[np.asarray(y)], delta=0.5 + 0.1 * call)",
    "return sum(tp.loss.cross_entropy_sparse(h[i : i + 1], y[i : i + 1]) for i in range(len(h))) / len(h)",
    "return -tp.log_softmax(h)[np.arange(len(h)), np.asarray(y)].mean()",
]

#: How a loss of the output comes from `loss(out, y)`.
LOSSES = {
    "closure": "def loss_of(y):\n    return lambda out: loss(out, y)",
    "default": "def loss_of(y):\n    return lambda out, y=y: loss(out, y)",
    "partial": "def loss_of(y):\n    return functools.partial(loss, y=y)",
    "same function": (
        "now = {}\ndef persistent(out):\n    return loss(out, now['y'])\n"
        "def loss_of(y):\n    now['y'] = y\n    return persistent"
    ),
    "object": (
        "class Loss:\n    def __init__(self, y):\n        self.y = y\n"
        "    def __call__(self, out):\n        return loss(out, self.y)\nloss_of = Loss"
    ),
    "method": (
        "class Losses:\n    def of(self, out):\n        return loss(out, self.y)\nlosses = Losses()\n"
        "def loss_of(y):\n    losses.y = y\n    return losses.of"
    ),
}

BATCHES = {
    "arrays": "return X[k][:n], Y[k][:n]",
    "tensors": "return tp.tensor(X[k][:n]), tp.tensor(Y[k][:n])",
    "the same": "return X[0], Y[0]",
    "in place": "X[0] += FT(0.1)\n    return X[0][:n], Y[k][:n]",
}


@dataclass
class Program:
    """What a seed makes. pieces: (place, piece); a place is "apply", "part0", "part1" or "loss"."""

    seed: int
    dtype: str = "float32"
    own: bool = False
    lambdas: int = 0
    layers: list[str] = field(default_factory=list)
    optimizer: str = OPTIMIZERS[0]
    end: str = ENDS[0]
    loss: str = "closure"
    batch: str = "arrays"
    short: int = 9
    #: So many calls are alike before anything changes.
    quiet: int = 0
    pieces: list = field(default_factory=list)
    #: Lines after the model: how it is trained.
    tail: str = ""
    #: Whether what it has kept is looked at after every call, or only at the end.
    look: bool = False

    @property
    def names(self):
        """The names of its pieces."""
        return [piece.name for _, piece in self.pieces]

    def __str__(self):
        parts = [
            f"# seed {self.seed}: {'; '.join(self.names) or 'no pieces'}",
            HEADER.format(dtype=self.dtype, seed=self.seed, D=D),
            *(piece.setup for _, piece in self.pieces if piece.setup),
            *(f"layer{_number(p)} = {p.layer}" for _, p in self.pieces if p.layer),
            self._between(),
        ]
        if self.own:
            parts += [self._init(), self._function("apply"), "own = tp.layer.Layer(init, apply, 'own')"]
        parts += [self._function(f"part{k}") for k in range(self.lambdas)]
        parts += [
            f"model = tp.layer.sequential([{', '.join(self.layers)}])",
            f"optimizer = {self.optimizer}",
            self._function("loss"),
            LOSSES[self.loss],
            f"def batch(k):\n    n = 3 if k == {self.short} else D\n    {BATCHES[self.batch]}",
            self.tail,
        ]
        return "\n".join(parts) + "\n"

    def _between(self):
        lines = ["global call", *self._globals("\n".join(p.change for _, p in self.pieces))]
        if self.quiet:
            lines.append(f"if k < {self.quiet}:\n        return")
        lines += ["call = k", "rate['lr'] = 0.05 if k < 4 else 0.02"]
        lines += [line for _, p in self.pieces for line in p.change.split("\n") if line]
        return "def between(k):\n" + _indented(lines)

    def _init(self):
        lines = [
            "w = tp.init.glorot_uniform(rngs, (D, D), dtype)",
            "params, state = {'w': w, 'b': tp.zeros(D, dtype)}, {'n': tp.zeros((), dtype)}",
        ]
        for k in (_number(p) for _, p in self.pieces if p.layer):
            lines.append(f"vars = layer{k}.init(tp.rng.fold_in(rngs, {k}), dtype)")
            lines.append(f"params['p{k}'], state['p{k}'] = vars.params, vars.state")
        return "def init(rngs, dtype):\n" + _indented([*lines, "return tp.layer.Vars(params, state, dtype)"])

    def _function(self, place):
        bodies = [piece.body for where, piece in self.pieces if where == place]
        lines = self._globals("\n".join(bodies))
        if place == "apply":
            head = "def apply(params, state, h, *, dtype, training, rngs, ctx):"
            lines.append("h = tp.tanh(h @ params['w'] + params['b'])")
            lines.append("state = {**state, 'n': state['n'] + 1}")
            end = "return h, state"
        else:
            head = "def loss(h, y):" if place == "loss" else f"def {place}(h):"
            end = self.end if place == "loss" else "return h"
        lines += [line for body in bodies for line in body.split("\n")]
        return f"{head}\n{_indented([*lines, end])}"

    def _globals(self, text):
        """Return the declaration of what lines assign of the names of the setup."""
        setup = "\n".join(p.setup for _, p in self.pieces)
        names = set(re.findall(r"(?m)^(?:def )?([a-zA-Z_]\w*\d+)\b", setup))
        names |= {n for row in re.findall(r"(?m)^(\w+(?:, \w+)+) = ", setup) for n in row.split(", ")}
        found = [n for n in sorted(names) if re.search(_ASSIGNED.format(n), text)]
        return [f"global {', '.join(found)}"] if found else []


_ASSIGNED = r"(?m)^\s*(?:\w+, )*{}(?:, \w+)*\s*[-+*/]?=(?!=)"


def _number(piece):
    return int(re.search(r"p(\d+)", piece.body)[1])


def _indented(lines):
    return "\n".join(f"    {line}" for line in lines)


def make(seed, pieces=None):
    """Return the program of a seed, of some pieces, without its `tail`."""
    rng = random.Random(seed)
    program = Program(
        seed,
        dtype=rng.choice(["float32", "float32", "float32", "float64"]),
        own=rng.random() < 0.6,
        lambdas=rng.choice([0, 0, 1, 1, 2]),
        optimizer=rng.choice(OPTIMIZERS),
        end=rng.choice(ENDS),
        loss=rng.choice(list(LOSSES)),
        batch=rng.choice(["arrays", "tensors", *BATCHES]),
        short=rng.choice([9, 9, 9, 3, 5]),
        quiet=rng.choice([0, 0, 1, 3, 3, 3]),
    )
    middle = [f"tp.layer.lambda_(part{k})" for k in range(program.lambdas)]
    if program.own:
        middle.append(rng.choice(["own", "tp.layer.residual(own)", "tp.layer.sequential([own])"]))
    middle += rng.choices(
        ["tp.layer.tanh()", "tp.layer.gelu()", "tp.layer.layer_norm(D)", "tp.layer.batch_norm(D)"],
        k=rng.choice([0, 1, 1]),
    )
    if rng.random() < 0.3:
        middle.append("tp.layer.dropout(0.3)")
    rng.shuffle(middle)
    program.layers = ["tp.layer.linear(D, D)", *middle, "tp.layer.linear(D, D)"]
    places = ["loss", "loss", *(f"part{k}" for k in range(program.lambdas)), *["apply"] * 2 * program.own]
    for number in range(1, 1 + (pieces or rng.choice([1, 2, 2, 3, 4]))):
        place = rng.choice(places)
        kinds = [fuzz_values.number, fuzz_values.thing, fuzz_python.other, fuzz_python.other]
        kinds += [fuzz_python.applied] * (place == "apply")
        piece = fuzz_python.sometimes(rng, rng.choice(kinds)(rng))
        program.pieces.append((place, piece.numbered(number)))
    return program
