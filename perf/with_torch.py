"""The five models in PyTorch, written as its users write them: fused optimizers, images channels_last.

torch.compile compiles model and loss, and RMSprop, which has no fused form: 2.93 ms instead of 3.06 a step of
`tabular`. With the fused Adam `mlp` is faster than with a compiled one, 2.57 ms instead of 2.81.
"""

import itertools

import models
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(128)
        self.qkv, self.out = nn.Linear(128, 384, bias=False), nn.Linear(128, 128, bias=False)
        self.norm2 = nn.LayerNorm(128)
        self.up, self.down = nn.Linear(128, 512), nn.Linear(512, 128)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, 4, 32).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, 128))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(65, 128), nn.Embedding(128, 128)
        self.blocks, self.norm = nn.Sequential(*(Block() for _ in range(4))), nn.LayerNorm(128)
        self.head = nn.Linear(128, 65)

    def forward(self, x):
        h = self.tokens(x) + self.places.weight[: x.shape[1]]
        return self.head(self.norm(self.blocks(h))).flatten(0, 1)


def dense(*sizes, act=nn.ReLU):
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), act())]
    return nn.Sequential(*layers[:-1])


def cnn():
    first, second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
    parts = [first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*parts, *dense(1568, 128, 10)).to(memory_format=torch.channels_last)


@torch.no_grad()
def fill(model, weights):
    """Copy weights in the order of layers; those of linear layers are (in, out)."""
    given = iter(weights)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            w = torch.from_numpy(next(given))
            parameter.copy_(w.T if isinstance(module, nn.Linear) and w.ndim == 2 else w)
    assert next(given, None) is None


def batches(name, part=0, parts=1):
    """Return the batches as tensors; of each, one of several parts of as many rows."""
    pairs = [
        tuple(torch.from_numpy(a[len(a) * part // parts : len(a) * (part + 1) // parts]) for a in b)
        for b in models.batches(name)
    ]
    if name == "cnn":
        pairs = [(x.to(memory_format=torch.channels_last), y) for x, y in pairs]
    return pairs if name in models.SQUARES else [(x, y.long().flatten()) for x, y in pairs]


def step(name, weights=None, compiled=False, ranks=None):
    """Return a function that takes a step. ranks: the number of this one and how many, with DDP."""
    torch.manual_seed(0)
    model = {
        "xor": lambda: dense(2, 4, 1, act=nn.Tanh),
        "mlp": lambda: dense(784, 512, 256, 10),
        "tabular": lambda: dense(32, 256, 256, 1),
        "deep": lambda: dense(*[128] * 30, 10),
        "wide": lambda: dense(1024, 1024, 1024, 10),
        "cnn": cnn,
        "gpt": GPT,
    }[name]()
    if weights is not None:
        fill(model, weights)
    if ranks is not None:
        model = nn.parallel.DistributedDataParallel(model)
    adam = {"lr": models.RATE, "betas": (models.B1, models.B2), "eps": models.EPS, "fused": True}
    if name == "tabular":
        rms = {"lr": models.RATE, "alpha": models.RMS_DECAY, "eps": models.EPS}
        optimizer = torch.optim.RMSprop(model.parameters(), **rms)
    elif name == "gpt":
        optimizer = torch.optim.AdamW(model.parameters(), **adam, weight_decay=models.WEIGHT_DECAY)
    else:
        optimizer = torch.optim.Adam(model.parameters(), **adam)
    criterion = F.mse_loss if name in models.SQUARES else F.cross_entropy
    loss = lambda x, y: criterion(model(x), y)
    update = optimizer.step
    if compiled:
        loss = torch.compile(loss)
        update = torch.compile(update) if name == "tabular" else update
    turns = itertools.cycle(batches(name, *(ranks or ())))

    def run():
        optimizer.zero_grad()
        value = loss(*next(turns))
        value.backward()
        update()
        return value.item()

    return run


def compiled_step(name, weights=None):
    return step(name, weights, compiled=True)
