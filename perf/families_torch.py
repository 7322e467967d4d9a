"""The families in PyTorch, each at its best: images channels_last, fused optimizers, flash attention.

Embeddings of recommenders are sparse: only the rows of a batch have gradients, moments and updates.
"""

import itertools
from collections.abc import Callable
from typing import Any

import arena
import families_models as models
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

#: Names of parameters where they are not PyTorch's.
_NAMES = {"scale": "weight", "gamma": "weight", "beta": "bias", "embedding": "weight"}


class _Residual(nn.Module):
    def __init__(self, parts: list[models.Part]) -> None:
        super().__init__()
        self.inner = build(parts)

    def forward(self, x: Any) -> Any:
        return x + self.inner(x)


class _Sum(nn.Module):
    def __init__(self, first: list[models.Part], second: list[models.Part]) -> None:
        super().__init__()
        self.first, self.second = build(first), build(second)

    def forward(self, x: Any) -> Any:
        return self.first(x) + self.second(x)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Any) -> Any:
        b, t, n = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, n // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, n))


class _Causal(nn.Conv1d):
    def forward(self, x: Any) -> Any:
        return super().forward(F.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


class _Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any) -> Any:
        return self.layer(x)[0]


class _Positions(nn.Embedding):
    def forward(self, x: Any) -> Any:
        return x + self.weight


class _Tables(nn.Module):
    def __init__(self, users: int, items: int, width: int) -> None:
        super().__init__()
        self.users, self.items = (nn.Embedding(n, width, sparse=True) for n in (users, items))

    def forward(self, x: Any) -> Any:
        return torch.cat([self.users(x[0]), self.items(x[1])], 1)


class _Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.forward = function


#: Kind of part -> its module.
_MODULES: dict[str, Callable[..., nn.Module]] = {
    "conv": lambda a, b, k, stride, pad, groups, bias: nn.Conv2d(
        a, b, k, stride, pad, groups=groups, bias=bias
    ),
    "transposed": lambda a, b, k: nn.ConvTranspose2d(a, b, k, 2, (k - 1) // 2),
    "conv1d": lambda a, b, k, dilation: _Causal(a, b, k, dilation=dilation),
    "batch_norm": nn.BatchNorm2d,
    "layer_norm": nn.LayerNorm,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "linear": nn.Linear,
    "lstm": lambda a, b: _Recurrent(nn.LSTM(a, b, batch_first=True)),
    "gru": lambda a, b: _Recurrent(nn.GRU(a, b, batch_first=True)),
    "embedding": nn.Embedding,
    "positions": _Positions,
    "attention": _Attention,
    "tokens": lambda width: _Apply(lambda x: x.flatten(2).transpose(1, 2)),
    "global_pool": lambda: _Apply(lambda x: x.mean((2, 3))),
    "mean": lambda: _Apply(lambda x: x.mean(1)),
    "tables": _Tables,
    "residual": _Residual,
    "sum": _Sum,
}


def build(parts: list[models.Part]) -> nn.Module:
    """Return the model of some parts."""
    return nn.Sequential(*(_MODULES[kind](*sizes) for kind, *sizes in parts))


@torch.no_grad()
def _fill(model: nn.Module, weights: list[dict[str, np.ndarray]]) -> None:
    """Copy treepie's weights, whose matrices are (in, out)."""
    owned = [m for m in model.modules() if isinstance(m, _Attention) or [*m.parameters(recurse=False)]]
    inner = {child for m in owned if isinstance(m, _Attention) for child in m.children()}
    for module, arrays in zip([m for m in owned if m not in inner], weights, strict=True):
        if isinstance(module, _Attention):
            for kind, name in (("proj", "weight"), ("bias", "bias")):
                parts = [arrays[f"{p}_{kind}"].T for p in "qkv"]
                getattr(module.qkv, name).copy_(torch.from_numpy(np.concatenate(parts)))
                getattr(module.out, name).copy_(torch.from_numpy(arrays[f"out_{kind}"].T))
            continue
        recurrent = isinstance(module, nn.RNNBase)
        for name, array in arrays.items():
            target = getattr(module, f"{name}_l0" if recurrent else _NAMES.get(name, name))
            transposed = recurrent or isinstance(module, nn.Linear)
            target.copy_(torch.from_numpy(array.T if transposed else array))


def _tensors(tree: Any) -> Any:
    if isinstance(tree, tuple):
        return tuple(map(_tensors, tree))
    if tree is None:
        return None
    x = torch.from_numpy(np.ascontiguousarray(tree))
    x = x.long() if x.dtype == torch.int32 else x
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x


def _optimizers(case: models.Case, model: nn.Module) -> list[Any]:
    adam = {"lr": models.RATE, "betas": (models.B1, models.B2), "eps": models.EPS}
    sparse = [p for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse for p in m.parameters()]
    dense = [p for p in model.parameters() if not any(p is s for s in sparse)]
    if case.optimizer == "sgd":
        return [torch.optim.SGD(dense, models.RATE, models.MOMENTUM, fused=True)]
    if case.optimizer == "adagrad":
        rule = {"lr": models.RATE, "eps": models.EPS}
        return [torch.optim.Adagrad(dense, **rule, fused=True), torch.optim.Adagrad(sparse, **rule)]
    every = [torch.optim.Adam(dense, **adam, fused=True)]
    return [*every, torch.optim.SparseAdam(sparse, **adam)] if sparse else every


def _cross_entropy(out: Any, y: Any) -> Any:
    return F.cross_entropy(out.flatten(0, -2), y.flatten())


def _returns(out: Any, y: Any) -> Any:
    return (F.cross_entropy(out, y[0], reduction="none") * y[1]).mean()


_LOSSES = {
    "squares": F.mse_loss,
    "logits": F.binary_cross_entropy_with_logits,
    "returns": _returns,
    "labels": _cross_entropy,
}


def step(case: models.Case, weights: list[dict[str, np.ndarray]]) -> Callable[[], float]:
    """Return a function that takes one step on the next batch and returns a number to compare."""
    torch.set_num_threads(arena.threads())
    torch.sparse.check_sparse_tensor_invariants.disable()  # as by default, without its warning
    if not case.parts:
        return _attention(case)
    turns = itertools.cycle([(_tensors(x), _tensors(y)) for x, y in case.batches()])
    model = build(case.parts)
    _fill(model, weights)
    if case.parts[0][0] == "conv":
        model = model.to(memory_format=torch.channels_last)
    if not case.optimizer:
        return _prediction(model, turns)
    optimizers = _optimizers(case, model)

    def run() -> float:
        for optimizer in optimizers:
            optimizer.zero_grad()
        x, y = next(turns)
        value = _burgers(model, x, y) if case.loss == "burgers" else _LOSSES[case.loss](model(x), y)
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
        return float(value.item())

    return run


def _prediction(model: nn.Module, turns: Any) -> Callable[[], float]:
    model.eval()

    def run() -> float:
        with torch.inference_mode():
            return float(model(next(turns)[0]).numpy().flat[1])

    return run


def _attention(case: models.Case) -> Callable[[], float]:
    batches = [
        ([torch.from_numpy(x).requires_grad_() for x in qkv], torch.from_numpy(g))
        for qkv, g in case.batches()
    ]
    turns, causal = itertools.cycle(batches), case.options["causal"]

    def run() -> float:
        qkv, g = next(turns)
        out = F.scaled_dot_product_attention(*qkv, is_causal=causal)
        return sum(x[0, 0, 7, 3].item() for x in (out, *torch.autograd.grad(out, qkv, g)))

    return run


def _burgers(model: nn.Module, x: Any, values: Any) -> Any:
    inside, start = x
    inside.requires_grad_()
    u = model(inside)
    (d,) = torch.autograd.grad(u.sum(), inside, create_graph=True)
    (second,) = torch.autograd.grad(d[:, 0].sum(), inside, create_graph=True)
    residual = d[:, 1:] + u * d[:, :1] - models.VISCOSITY * second[:, :1]
    return residual.square().mean() + F.mse_loss(model(start), values)
