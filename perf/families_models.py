"""The families of models that `families.py` compares: their parts, sizes, batches, losses and optimizers.

A model is a list of parts, (kind, *sizes), that `families_treepie.py`, `families_torch.py` and
`families_jax.py` each build as their users write it: so all libraries have the same layers in the same order,
and the weights of one fit the others. Images are NCHW here.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Part = tuple[Any, ...]
Batch = tuple[Any, Any]

#: Of the optimizers of all libraries.
RATE, MOMENTUM, B1, B2, EPS = 1e-3, 0.9, 0.9, 0.999, 1e-8
#: Viscosity in Burgers' equation, u_t + u u_x = viscosity u_xx.
VISCOSITY = 0.01
CLASSES, CHARACTERS, WORDS = 10, 65, 8192
#: Batches that training goes round.
BATCHES = 4


@dataclass(frozen=True)
class Case:
    """A model of a family at one size.

    text: the size, for the table.
    parts: of the model; empty for attention alone.
    batch: a generator of random numbers -> (input, target). An input may be a tuple.
    loss: "labels" (cross-entropy), "squares", "logits" (binary cross-entropy), "burgers" (the residual of a
        differential equation) or "returns" (the policy gradient).
    optimizer: "sgd", "adam" or "adagrad". Empty for what is not training: predictions, or attention's output
        and gradients.
    options: what a kind of case needs besides.
    """

    text: str
    parts: list[Part]
    batch: Callable[[np.random.Generator], Batch]
    loss: str = "labels"
    optimizer: str = "adam"
    options: dict[str, Any] = field(default_factory=dict)

    def batches(self) -> list[Batch]:
        """Return the batches, the same in every process."""
        draw = np.random.default_rng(0)
        return [self.batch(draw) for _ in range(BATCHES)]


def _floats(*shape: int) -> Callable[[np.random.Generator], Any]:
    return lambda draw: draw.standard_normal(shape, "f4")


def _integers(high: int, *shape: int) -> Callable[[np.random.Generator], Any]:
    return lambda draw: draw.integers(0, high, shape).astype("i4")


def _pairs(
    x: Callable[[np.random.Generator], Any], y: Callable[[np.random.Generator], Any]
) -> Callable[[np.random.Generator], Batch]:
    return lambda draw: (x(draw), y(draw))


def _images(batch: int, size: int) -> Callable[[np.random.Generator], Batch]:
    return _pairs(_floats(batch, 3, size, size), _integers(CLASSES, batch))


def conv(a: int, b: int, k: int, stride: int = 1, groups: int = 1, bias: bool = False) -> Part:
    """Return a convolution whose padding keeps the size, or halves an even one with stride 2."""
    return ("conv", a, b, k, stride, (k - 1) // 2, groups, bias)


def resnet(batch: int, size: int, channels: tuple[int, ...], blocks: int) -> Case:
    """Return a residual network: batch norm, strides of 2 between stages, 1x1 shortcuts, global pooling."""

    def block(a: int, b: int, stride: int) -> list[Part]:
        first = [conv(a, b, 3, stride), ("batch_norm", b), ("relu",)]
        both = [*first, conv(b, b, 3), ("batch_norm", b)]
        if a == b and stride == 1:
            return [("residual", both), ("relu",)]
        return [("sum", both, [conv(a, b, 1, stride), ("batch_norm", b)]), ("relu",)]

    parts = [conv(3, channels[0], 3), ("batch_norm", channels[0]), ("relu",)]
    for stage, (a, b) in enumerate(itertools.pairwise((channels[0], *channels))):
        parts += block(a, b, 2 if stage else 1)
        parts += [part for _ in range(blocks - 1) for part in block(b, b, 1)]
    parts += [("global_pool",), ("linear", channels[-1], CLASSES)]
    widths = "-".join(map(str, channels))
    text = f"{size} x {size}, channels {widths}, {blocks} blocks each, batch {batch}, SGD"
    return Case(text, parts, _images(batch, size), optimizer="sgd")


def separable(batch: int, size: int, channels: tuple[int, ...]) -> Case:
    """Return a network of depthwise-separable convolutions, every second one with a stride of 2."""
    parts = [conv(3, channels[0], 3), ("batch_norm", channels[0]), ("relu",)]
    for k, (a, b) in enumerate(itertools.pairwise(channels)):
        parts += [conv(a, a, 3, 1 + k % 2, groups=a), ("batch_norm", a), ("relu",)]
        parts += [conv(a, b, 1), ("batch_norm", b), ("relu",)]
    parts += [("global_pool",), ("linear", channels[-1], CLASSES)]
    text = f"{size} x {size}, channels {'-'.join(map(str, channels))}, batch {batch}, SGD"
    return Case(text, parts, _images(batch, size), optimizer="sgd")


def autoencoder(batch: int, size: int, channels: tuple[int, ...], k: int) -> Case:
    """Return an autoencoder of strided and transposed convolutions."""
    down = [p for a, b in itertools.pairwise(channels) for p in (conv(a, b, k, 2, bias=True), ("relu",))]
    up = [p for a, b in itertools.pairwise(channels[::-1]) for p in (("transposed", a, b, k), ("relu",))]
    images = _floats(batch, channels[0], size, size)
    text = f"{size} x {size}, channels {'-'.join(map(str, channels))}, kernels {k} x {k}, batch {batch}, Adam"
    return Case(text, down + up[:-1], _pairs(images, images), "squares")


def characters(kind: str, batch: int, hidden: int, length: int) -> Case:
    """Return a language model of characters: an LSTM or a GRU."""
    parts = [("embedding", CHARACTERS, hidden), (kind, hidden, hidden), ("linear", hidden, CHARACTERS)]
    codes = _integers(CHARACTERS, batch, length)
    return Case(f"hidden {hidden}, {length} characters, batch {batch}, Adam", parts, _pairs(codes, codes))


def temporal(batch: int, channels: int, length: int) -> Case:
    """Return residual blocks of dilated causal convolutions over time."""

    def block(a: int, dilation: int) -> Part:
        both = [
            *(("conv1d", a, channels, 3, dilation), ("relu",)),
            *(("conv1d", channels, channels, 3, dilation), ("relu",)),
        ]
        return ("residual", both) if a == channels else ("sum", both, [("conv1d", a, channels, 1, 1)])

    parts = [block(8 if d == 1 else channels, d) for d in (1, 2, 4, 8)]
    parts.append(("conv1d", channels, 1, 1, 1))
    pairs = _pairs(_floats(batch, 8, length), _floats(batch, 1, length))
    return Case(
        f"{channels} channels, {length} steps, 4 blocks, batch {batch}, Adam", parts, pairs, "squares"
    )


def _blocks(count: int, width: int, heads: int, norm_first: bool) -> list[Part]:
    mlp = [("linear", width, 4 * width), ("gelu",), ("linear", 4 * width, width)]
    block: list[Part] = []
    for inner in ([("attention", width, heads)], mlp):
        norm = ("layer_norm", width)
        block += [("residual", [norm, *inner])] if norm_first else [("residual", inner), norm]
    return block * count


def vit(batch: int, size: int, patch: int, width: int, heads: int, count: int) -> Case:
    """Return a vision transformer, whose tokens are averaged for the classifier."""
    tokens = (size // patch) ** 2
    first = [("conv", 3, width, patch, patch, 0, 1, True), ("tokens", width), ("positions", tokens, width)]
    last = [("layer_norm", width), ("mean",), ("linear", width, CLASSES)]
    text = f"{size} x {size}, patches {patch} x {patch}, {count} blocks, {width} wide, batch {batch}, Adam"
    return Case(text, [*first, *_blocks(count, width, heads, True), *last], _images(batch, size))


def attention(batch: int, heads: int, length: int, causal: bool) -> Case:
    """Return attention alone, its output and gradients."""
    shape = (batch, heads, length, 64)

    def qkv(draw: np.random.Generator) -> Batch:
        q, k, v, g = (draw.standard_normal(shape, "f4") for _ in range(4))
        return (q, k, v), g

    text = f"{length} tokens, {'causal' if causal else 'full'}, {batch} x {heads} heads of 64, with gradients"
    return Case(text, [], qkv, "", "", {"causal": causal})


def _dense(*sizes: int, act: str) -> list[Part]:
    return [p for a, b in itertools.pairwise(sizes) for p in (("linear", a, b), (act,))][:-1]


def pinn(points: int, width: int) -> Case:
    """Return a network that learns to solve Burgers' equation from its residual."""

    def batch(draw: np.random.Generator) -> Batch:
        inside = draw.uniform(-1, 1, (points, 2)).astype("f4")
        start = draw.uniform(-1, 1, (points // 8, 2)).astype("f4")
        start[:, 1] = 0
        return (inside, start), -np.sin(np.pi * start[:, :1])

    text = f"Burgers, 2-{width} x 4-1 tanh, {points} points, Adam"
    return Case(text, _dense(2, *[width] * 4, 1, act="tanh"), batch, "burgers")


def recommender(batch: int, users: int, items: int, width: int, optimizer: str) -> Case:
    """Return two tables of embeddings, with a perceptron that scores a user and an item."""

    def data(draw: np.random.Generator) -> Batch:
        x = tuple(draw.integers(0, n, batch).astype("i4") for n in (users, items))
        return x, draw.integers(0, 2, (batch, 1)).astype("f4")

    parts = [("tables", users, items, width), *_dense(2 * width, 64, 32, 1, act="relu")]
    rule = {"adam": "Adam", "adagrad": "Adagrad"}[optimizer]
    text = f"tables of {users // 1000}k and {items // 1000}k x {width}, batch {batch}, {rule}"
    return Case(text, parts, data, "logits", optimizer)


def deep(depth: int, width: int, batch: int) -> Case:
    """Return a deep and narrow perceptron."""
    pairs = _pairs(_floats(batch, width), _integers(CLASSES, batch))
    text = f"{depth} layers of {width} relu, batch {batch}, Adam"
    return Case(text, _dense(*[width] * depth, CLASSES, act="relu"), pairs)


def policy(batch: int, *sizes: int) -> Case:
    """Return an update of a policy of some actions by its returns."""

    def data(draw: np.random.Generator) -> Batch:
        returns = draw.standard_normal(batch, "f4")
        return draw.standard_normal((batch, sizes[0]), "f4"), (_integers(sizes[-1], batch)(draw), returns)

    text = f"update, {'-'.join(map(str, sizes))} tanh, batch {batch}, Adam"
    return Case(text, _dense(*sizes, act="tanh"), data, "returns")


def act(batch: int, *sizes: int) -> Case:
    """Return a policy's logits in some states."""
    pairs = _pairs(_floats(batch, sizes[0]), lambda draw: None)
    text = f"action, {'-'.join(map(str, sizes))} tanh, batch {batch}"
    return Case(text, _dense(*sizes, act="tanh"), pairs, "", "")


def bert(batch: int, count: int, width: int, heads: int) -> Case:
    """Return an encoder's predictions."""
    first = [("embedding", WORDS, width), ("positions", 128, width), ("layer_norm", width)]
    pairs = _pairs(_integers(WORDS, batch, 128), lambda draw: None)
    text = f"{count} blocks, {width} wide, 128 tokens, batch {batch}"
    return Case(text, [*first, *_blocks(count, width, heads, False)], pairs, "", "")


#: Family -> its sizes.
FAMILIES: dict[str, list[Case]] = {
    "resnet": [resnet(32, 32, (16, 32, 64), 2), resnet(16, 64, (32, 64, 128), 1)],
    "separable": [separable(32, 32, (16, 32, 64, 64, 128)), separable(16, 64, (16, 32, 64, 64, 128))],
    "autoencoder": [autoencoder(64, 32, (1, 16, 32), 4), autoencoder(16, 64, (3, 32, 64, 128), 2)],
    "lstm": [characters("lstm", 32, h, n) for h in (128, 512) for n in (32, 128)],
    "gru": [characters("gru", 32, h, n) for h in (128, 512) for n in (32, 128)],
    "temporal": [temporal(16, 32, 256), temporal(16, 64, 1024)],
    "vit": [vit(32, 32, 4, 128, 4, 4), vit(16, 64, 8, 192, 3, 6)],
    "attention": [
        attention(*shape, causal)
        for shape in ((2, 4, 1024), (1, 4, 4096), (1, 1, 8192))
        for causal in (False, True)
    ],
    "pinn": [pinn(1024, 32), pinn(4096, 64)],
    "recommender": [
        recommender(1024, 100_000, 20_000, 32, "adagrad"),
        recommender(1024, 1_000_000, 100_000, 16, "adagrad"),
        recommender(1024, 100_000, 20_000, 32, "adam"),
    ],
    "deep": [deep(64, 16, 32), deep(64, 64, 128)],
    "policy": [
        policy(32, 4, 64, 2),
        policy(256, 17, 64, 64, 6),
        act(1, 4, 64, 2),
        act(32, 17, 64, 64, 6),
    ],
    "bert": [*(bert(batch, 4, 256, 4) for batch in (1, 8, 32)), bert(1, 8, 512, 8)],
}


def cases() -> dict[str, Case]:
    """Return all cases by name: "resnet 0", "resnet 1" and so on."""
    return {f"{family} {k}": case for family, sizes in FAMILIES.items() for k, case in enumerate(sizes)}
