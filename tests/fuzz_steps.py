"""Random programs whose Python changes something in every call, through `Trainer.step` and `predict`.

A program is source text (`fuzz_source.py`); it runs twice, by treepie and by tests/eager.py, six calls each,
and all that can be seen of the two runs is compared bit by bit: losses, states, outputs, errors, what the
program wrote down, and the tensors that it kept, once all calls are done. Of a program with a difference,
`shrunk` leaves what it takes.

`python -m tests.fuzz_steps 2000` runs so many and 300 fits, and counts what it finds; `1000 2000` are seeds,
and `step 17` or `fit 17` shows what one finds.
"""

import collections
import contextlib
import io
import linecache
import random
import re
import sys
from dataclasses import replace

import numpy as np

import treepie as tp
from treepie.train.state import TrainState

from . import eager, fuzz_source

CALLS = 6


#: What `run` does, for the reader of a source.
_TAIL = """\
# for k in range(6):
#     between(k)
#     x, y = batch(k)
#     loss, st = trainer.step(st, x, loss_of(y), training[k], key of k, ctx)
#     if predict[k]: trainer.predict(st, x, ctx)
training, predict, scale = {}, {}, {}
"""


def make(seed):
    """Return the program of a seed."""
    program = fuzz_source.make(seed)
    rng = random.Random(f"step {seed}")
    rate = rng.choice([0.0, 0.5, 1.0])
    training, predict = ([rng.random() < p for _ in range(CALLS)] for p in (0.9, rate))
    scale = [rng.choice([0.5, 0.6, 1.0]) for _ in range(CALLS)] if rng.random() < 0.3 else None
    program.tail = _TAIL.format(training, predict, scale)
    program.look = rng.random() < 0.5
    return program


class Treepie:
    """The library's own way: what is tested."""

    Trainer, jit = tp.Trainer, staticmethod(tp.jit)


class Eager:
    """Op by op: what it is compared with."""

    Trainer, jit = eager.Eager, staticmethod(eager.jit)


def seen(x):
    """Return what can be compared of a tree: shapes, dtypes and bits (all NaNs are one), texts."""
    if isinstance(x, TrainState):
        moments = seen(list(x.opt_state.moments))
        counts = (str(x.step), str(x.opt_state.count))
        return ("state", *counts, seen(x.vars.params), seen(x.vars.state), moments)
    if isinstance(x, tp.Tensor | np.ndarray):
        a = np.asarray(x.numpy() if isinstance(x, tp.Tensor) else x)
        if a.dtype.kind == "f":
            a = np.where(np.isnan(a), np.array(np.nan, a.dtype), a)
        return ("tensor", a.shape, a.dtype.name, a.tobytes())
    if isinstance(x, dict):
        return {k: seen(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [seen(v) for v in x]
    return repr(x)


def failure(error):
    """Return an error as it is compared: type and text, of a step that is not finite its number alone."""
    text = str(error)
    if isinstance(error, FloatingPointError | RuntimeWarning):
        text = " ".join(re.findall(r"in step \d+", text)) or text
    return ("error", type(error).__name__, text)


def execute(program, way):
    """Run the source of a program, and return its names."""
    name = f"<program {program.seed} of {way.__name__}>"
    text = str(program)
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
    names = {"__name__": "program", "Trainer": way.Trainer, "jit": way.jit}
    exec(compile(text, name, "exec"), names)  # the program is ours
    names["trainer"] = way.Trainer(names["model"], names["optimizer"])
    return names


@contextlib.contextmanager
def alone():
    """Let nothing of a program stay behind, and nothing that treepie says be shown."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), np.errstate(all="ignore"):
            yield
    finally:
        for name in [n for n in sys.modules if n.startswith("fuzzed_")]:
            del sys.modules[name]
        for name in [n for n in linecache.cache if n.startswith("<program ")]:
            del linecache.cache[name]


def run(program, way):
    """Return what is seen of the calls of a program: [(what, value), ...]."""
    with alone():
        names = execute(program, way)
        trainer, found = names["trainer"], []
        st = trainer.init(tp.rng.key(program.seed), names["FT"])
        states = [st]
        for k in range(CALLS):
            try:
                names["between"](k)
                x, y = names["batch"](k)
                rngs, ctx = tp.rng.fold_in(tp.rng.key(1), k), None
                if names["scale"]:
                    ctx = tp.Context().set("scale", np.full(fuzz_source.D, names["scale"][k], names["FT"]))
                loss = names["loss_of"](y)
                value, st = trainer.step(st, x, loss, names["training"][k], rngs, ctx)
                states.append(st)
                found.append((f"call {k}: the loss", seen(value)))
                if names["predict"][k]:
                    found.append((f"call {k}: the prediction", seen(trainer.predict(st, x, ctx))))
            except Exception as error:  # to be the same in both runs
                found.append((f"call {k}: the error", failure(error)))
            if program.look:
                found += left(names, f"call {k}: ")
        return [*found, *[(f"state {k}", seen(s)) for k, s in enumerate(states)], *left(names)]


def left(names, when=""):
    """Return what a program has written down and kept so far."""
    kept = {k: names[k] for k in ("log", "kept", "aux", "queue", "states")}
    kept["me"], kept["queue"] = vars(names["me"]), list(names["queue"])
    found = []
    for name, value in kept.items():
        try:
            found.append((f"{when}{name}", seen(value)))
        except Exception as error:  # a kept tensor that has no value
            found.append((f"{when}{name}", failure(error)))
    return [*found, (f"{when}printed", names["sink"].getvalue())]


def difference(want, got, path=""):
    """Return where two trees of `seen` differ first and how; None if they do not."""
    if want == got:
        return None
    if type(want) is type(got) is dict and list(want) == list(got):
        parts = [(f"{path}[{k!r}]", want[k], got[k]) for k in want]
    elif isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        parts = [(f"{path}[{k}]", a, b) for k, (a, b) in enumerate(zip(want, got, strict=True))]
    elif _kind(want) == _kind(got) == "state":
        labels = ("", ".step", ".count", ".params", ".model_state", ".moments")
        parts = [(path + label, a, b) for label, a, b in zip(labels, want, got, strict=True)]
    elif _kind(want) == _kind(got) == "tensor" and want[1:3] == got[1:3]:
        a, b = (np.frombuffer(x[3], x[2]).reshape(x[1]) for x in (want, got))
        same = (a == b) & (np.signbit(a) == np.signbit(b)) | ((a != a) & (b != b))
        at = tuple(np.argwhere(~same)[0].tolist())
        return f"{path}{list(at) or ''} is {b[at]!r}, eager {a[at]!r}: {(~same).sum()} of {a.size} differ"
    else:
        return f"{path} is {_shown(got, want)}, eager {_shown(want, got)}"
    return next(filter(None, (difference(a, b, p) for p, a, b in parts)))


def _kind(x):
    return x[0] if isinstance(x, tuple) else type(x)


def _shown(x, other):
    """Return a text of what differs, from shortly before the place where it does."""
    if _kind(x) == "tensor":
        return f"{x[2]}{list(x[1])}"
    if not isinstance(x, str) or not isinstance(other, str):
        return str(x)[:200]
    at = next((k for k, (a, b) in enumerate(zip(x, other, strict=False)) if a != b), min(len(x), len(other)))
    start = max(0, at - 30)
    return repr(("..." if start else "") + x[start : at + 50])


def found(program, run=run, one=Treepie, other=Eager):
    """Return how a program's two runs differ; None if they do not."""
    want, got = run(program, other), run(program, one)
    for (label, a), (same, b) in zip(want, got, strict=False):
        if label != same:
            return f"{same} is {_shown(b, a)}, eager: {label}, {_shown(a, b)}"
        text = difference(a, b, label)
        if text is not None:
            return text
    return None if len(want) == len(got) else f"{len(got)} results, eager {len(want)}"


#: What a program has where that shows the same difference.
_PLAIN = {
    "optimizer": fuzz_source.OPTIMIZERS[0],
    "end": fuzz_source.ENDS[0],
    "loss": "closure",
    "batch": "arrays",
    "short": 9,
    "quiet": 0,
    "dtype": "float32",
    "look": False,
}


def shrunk(program, differs):
    """Return the program with as few pieces, layers and varieties as still differ."""
    for layer in program.layers[1:-1]:
        fewer = replace(program, layers=[x for x in program.layers if x is not layer])
        program = fewer if differs(fewer) else program
    for piece in reversed(program.pieces):
        fewer = replace(program, pieces=[p for p in program.pieces if p is not piece])
        program = fewer if differs(fewer) else program
    for name, plain in _PLAIN.items():
        plainer = replace(program, **{name: plain})
        program = plainer if differs(plainer) else program
    return program


def check(program, run=run, **ways):
    """Raise AssertionError, with the shortest source that shows it, where a program's runs differ."""
    __tracebackhide__ = True
    if found(program, run, **ways) is None:
        return
    program = shrunk(program, lambda p: found(p, run, **ways) is not None)
    raise AssertionError(f"{found(program, run, **ways)}\n\n{program}")


def main(arguments):
    """Run programs and fits, and count what they find; or show what one finds."""
    from . import fuzz_fits  # which is made of this module

    kinds = {"step": (make, run), "fit": (fuzz_fits.make, fuzz_fits.run)}
    if arguments[0] in kinds:
        maker, runner = kinds[arguments[0]]
        check(maker(int(arguments[1])), runner)
        return
    first, last = (0, int(arguments[0])) if len(arguments) == 1 else map(int, arguments[:2])
    for kind, (maker, runner) in kinds.items():
        counts, seeds = collections.Counter(), range(first, last)
        for seed in seeds if kind == "step" else seeds[: (last - first) * 3 // 20]:
            program = maker(seed)
            if found(program, runner) is not None:
                program = shrunk(program, lambda p, runner=runner: found(p, runner) is not None)
                kinds_of = sorted({name.split(",")[0] for name in program.names})
                counts[" + ".join(kinds_of) or "no pieces"] += 1
                print(f"{kind} {seed}: {program.names}: {found(program, runner)}", flush=True)
        print(f"\n{kind}: {counts.total()} of {seed + 1 - first} differ")
        for name, count in counts.most_common():
            print(f"{count:6} {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
