"""Calls of every public function with integers beyond what a size, a position or an int64 can be.

python -m tests.extreme_calls START STOP    runs some of the calls, a line of JSON for each

`test_arguments.py` runs it in processes with a limit of memory: a crash or a hang ends the process.
"""

import faulthandler
import inspect
import json
import re
import resource
import sys
import tempfile
import time

import numpy as np

import treepie as tp

from .extreme_arguments import ARGUMENTS, IMAGES, KEY, NO_INTEGERS, NOT_NUMBERS, PARAMS, ROWS, SEQUENCE, X
from .test_signatures import FUNCTIONS

#: 2**31 is the least that int32 can not hold, 2**63 the least that int64 can not.
EXTREMES = [2**31, 2**32, 2**40, 2**62, 2**63, 2**64, 2**70, -1, -(2**31), -(2**32), -(2**63), -(2**70)]
#: Bytes that a process may have, and seconds that a call may take.
MEMORY, SECONDS = 4 << 30, 60


def _apply(x):
    """Return what runs a layer on x."""
    return lambda layer: layer.apply(layer.init(rngs=KEY), x, training=True, rngs=KEY)


def _optimize(opt):
    return opt.update(opt.init(PARAMS), PARAMS, PARAMS)


def _data():
    return tp.Data.of_tensors((X, np.arange(3)))


def _trainer():
    trainer = tp.Trainer(tp.layer.linear(4, 2), tp.optim.sgd(0.1))
    return trainer, trainer.init(KEY)


def _fit(epochs=1, accumulate_steps=1):
    trainer, st = _trainer()
    return trainer.fit(
        st,
        _data().batch(2).take(1) if epochs == accumulate_steps == 1 else tp.Data.of_array([]),
        tp.loss.cross_entropy_sparse,
        epochs=epochs,
        accumulate_steps=accumulate_steps,
    )


def _predict(batch_size=2):
    trainer, st = _trainer()
    return trainer.predict(st, X, batch_size=batch_size)


def _every(steps, keep):
    return tp.checkpoint.every(steps, tempfile.gettempdir(), keep)


#: Function -> what uses its result.
USES = {
    **{
        f"augment.{k}": lambda change: change(IMAGES, KEY)
        for k in (*("center_crop", "crop", "custom", "cutmix", "cutout", "flip", "jitter", "mixup", "shift"),)
    },
    "init.constant": lambda f: f(KEY, (2,)),
    "init.variance_scaling": lambda f: f(KEY, (2, 3)),
    "jit": lambda f: f(X),
    **{f"optim.{k}": _optimize for k in ("adagrad", "adam", "adamw", "rmsprop", "sgd")},
    **{f"optim.{k}": _optimize for k in ("lamb", "lion", "nadam")},
    **{
        f"optim.{k}": lambda part: _optimize(tp.optim.chain(part, tp.optim.sgd(0.1)))
        for k in ("add_decayed_weights", "clip_norm", "clip_value")
    },
    "optim.ema": lambda part: _optimize(tp.optim.chain(tp.optim.sgd(0.1), part)),
    **{f"layer.{k}": _apply(ROWS) for k in ("avg_pool1d", "max_pool1d", "conv1d", "conv_transpose1d")},
    **{
        f"layer.{k}": _apply(IMAGES)
        for k in (
            *("avg_pool2d", "max_pool2d", "conv2d", "batch_norm", "group_norm", "adaptive_avg_pool2d"),
            *("upsample", "pad", "conv_transpose2d", "instance_norm", "dropout2d"),
        )
    },
    **{
        f"layer.{k}": _apply(SEQUENCE)
        for k in (
            *("gru", "lstm", "layer_norm", "rms_norm", "multi_head_attention", "positional"),
            "transformer_encoder",
        )
    },
    "layer.transformer_decoder": _apply((SEQUENCE, SEQUENCE)),
    **{
        f"layer.{k}": _apply(X)
        for k in (
            *(
                "linear",
                "dropout",
                "celu",
                "elu",
                "leaky_relu",
                "squareplus",
                "glu",
                "softmax",
                "log_softmax",
            ),
            *("prelu", "reshape", "permute", "parallel"),
            *("scale", "parametric_activation", "periodic_embedding"),
        )
    },
    "layer.embedding": _apply(np.array([0, 1])),
}

schedule = tp.optim.schedule
#: Methods, operators and classes: name -> (function, its arguments).
OTHERS = {
    "x + n": (lambda n: tp.tensor(X) + n, {"n": 1}),
    "n * x": (lambda n: n * tp.tensor(X), {"n": 1}),
    "x ** n": (lambda n: tp.tensor(X) ** n, {"n": 1}),
    "i + n": (lambda n: tp.tensor([1, 2]) + n, {"n": 1}),
    "n - i": (lambda n: n - tp.tensor([1, 2]), {"n": 1}),
    "i * n": (lambda n: tp.tensor([1, 2], tp.int64) * n, {"n": 1}),
    "i < n": (lambda n: tp.tensor([1, 2]) < n, {"n": 1}),
    "i == n": (lambda n: tp.tensor([1, 2]) == n, {"n": 1}),
    "i ** n": (lambda n: tp.tensor([1, 2]) ** n, {"n": 1}),
    "b == n": (lambda n: tp.tensor([True, False]) == n, {"n": 1}),
    "getitem": (lambda n: tp.tensor(X)[n], {"n": 1}),
    "getitem, list": (lambda n, m: tp.tensor(X)[[n, m]], {"n": 0, "m": 1}),
    "getitem, tuple": (lambda n: tp.tensor(X)[n], {"n": (0, 1)}),
    "getitem, slice": (lambda a, b, c: tp.tensor(X)[a:b:c], {"a": 0, "b": 2, "c": 1}),
    "at.set": (lambda n, v: tp.tensor(X).at[n].set(v), {"n": (0, 1), "v": 1}),
    "at.set, slice": (lambda a, b, c: tp.tensor(X).at[a:b:c].set(1), {"a": 0, "b": 2, "c": 1}),
    "at.add, list": (lambda n, v: tp.tensor(X).at[[n, 1]].add(v), {"n": 0, "v": 1}),
    "at.set, int": (lambda v: tp.tensor([1, 2]).at[0].set(v), {"v": 1}),
    "reshape method": (lambda n, m: tp.tensor(X).reshape(n, m), {"n": 3, "m": 4}),
    "repeat method": (lambda n: tp.tensor(X).repeat(n), {"n": 2}),
    "transpose method": (lambda n, m: tp.tensor(X).transpose(n, m), {"n": 0, "m": 1}),
    "Data": (lambda n: tp.Data(n, lambda e, k: k).take(2).to_list(), {"n": 3}),
    "Data.of_fn": (lambda n: tp.Data.of_fn(n, lambda k: k).take(2).to_list(), {"n": 3}),
    "Data.repeat": (lambda n: len(tp.Data.repeat(n, 0)), {"n": 3}),
    "Data.prepare": (lambda n: tp.Data.prepare(X, n).to_list(), {"n": 2}),
    "Data.prepare, shuffled": (lambda n: tp.Data.prepare(X, n, KEY, drop_last=True).to_list(), {"n": 2}),
    "Data.batch": (lambda n: _data().batch(n).to_list(), {"n": 2}),
    "Data.map_batch": (lambda n: _data().map_batch(n, len).to_list(), {"n": 2}),
    "Data.prefetch": (lambda n: _data().prefetch(n).to_list(), {"n": 2}),
    "Data.take": (lambda n: _data().take(n).to_list(), {"n": 2}),
    "Data.seek": (lambda n, m: _data().shuffle(KEY).seek(n, m), {"n": 2, "m": 1}),
    "Data.seek, read": (lambda n: _seek(n), {"n": 2}),
    "Data.shuffle": (lambda n: tp.Data.repeat(n, 0).shuffle(KEY).take(1).to_list(), {"n": 2}),
    "checkpoint.every": (_every, {"steps": 1, "keep": 1}),
    "Trainer.fit": (_fit, {"epochs": 1, "accumulate_steps": 1}),
    "Trainer.predict": (_predict, {"batch_size": 2}),
    "metric.TopKAccuracy": (lambda k: tp.metric.TopKAccuracy(k), {"k": 2}),
    "schedule.constant": (lambda v: schedule.constant(v)(1), {"v": 1}),
    "schedule.cosine_decay": (lambda n, s: schedule.cosine_decay(1.0, n)(s), {"n": 3, "s": 1}),
    "schedule.warmup_linear": (lambda n, s: schedule.warmup_linear(0.0, 1.0, n)(s), {"n": 3, "s": 1}),
    "schedule.warmup_cosine": (lambda n, s: schedule.warmup_cosine(0.0, 1.0, n)(s), {"n": 3, "s": 1}),
    "schedule.warmup_cosine_decay": (
        lambda n, m, s: schedule.warmup_cosine_decay(0.0, 1.0, n, m)(s),
        {"n": 3, "m": 5, "s": 1},
    ),
    "schedule.cosine_restarts": (
        lambda n, g, s: schedule.cosine_restarts(1.0, n, g, 0.5)(s),
        {"n": 3, "g": 2, "s": 1},
    ),
    "schedule.coslog": (lambda n, c, s: schedule.coslog(1.0, n, c)(s), {"n": 3, "c": 2, "s": 1}),
    "schedule.one_cycle": (lambda n, s: schedule.one_cycle(1.0, n)(s), {"n": 3, "s": 1}),
    "schedule.piecewise_constant": (
        lambda n, s: schedule.piecewise_constant([1.0, 2.0], [n])(s),
        {"n": 3, "s": 1},
    ),
    "schedule.exponential_decay": (lambda n, s: schedule.exponential_decay(1.0, 0.5, n)(s), {"n": 3, "s": 1}),
    "schedule.join": (lambda n: schedule.join([schedule.constant(1.0)] * 2, [n])(1), {"n": 3}),
    "state_of_trees": (lambda n: tp.optim.sgd(0.1).state_of_trees(n, []), {"n": 3}),
    "zeros, empty": (lambda n, m: tp.zeros((0, n, m)), {"n": 1, "m": 1}),
    "outer of empty": (lambda n, m: tp.zeros((n, 0)) @ tp.zeros((0, m)), {"n": 1, "m": 1}),
    "broadcast of empty": (lambda n, m: tp.zeros((n, 1, 0)) + tp.zeros((1, m, 0)), {"n": 1, "m": 1}),
    "sum of empty": (lambda n, m: tp.zeros((n, m, 0)).sum(-1), {"n": 1, "m": 1}),
    "reshape of empty": (lambda n, m: tp.zeros((0,)).reshape((0, n, m)), {"n": 1, "m": 1}),
}


def _seek(n):
    data = _data().shuffle(KEY)
    data.seek(n)
    return next(iter(data))


def functions():
    """Return the public functions and the calls of `OTHERS`: name -> (function, its arguments)."""
    rows = {}
    for name, function in FUNCTIONS.items():
        if name in NO_INTEGERS:
            continue
        parameters = inspect.signature(function).parameters
        values = ARGUMENTS.get(name)
        if values is None:  # those of one or two tensors
            values = {p: X for p, q in parameters.items() if q.default is q.empty}
        defaults = {p: q.default for p, q in parameters.items() if q.default is not q.empty}
        rows[name] = function, {**defaults, **values}
    return rows | OTHERS


def variants(value):
    """Yield the value of an argument with an extreme integer in every place that has or may have one."""
    for n in EXTREMES:
        if isinstance(value, bool | str) or callable(value):
            return
        if value is None or isinstance(value, int | float | np.ndarray):
            yield n
        if isinstance(value, tuple | list):
            yield n
            yield type(value)(n for _ in value)
            for k, part in enumerate(value):
                for other in variants_of(part, n):
                    yield type(value)((*value[:k], other, *value[k + 1 :]))


def variants_of(value, n):
    if isinstance(value, tuple | list):
        yield type(value)(n for _ in value)
        for k, part in enumerate(value):
            for other in variants_of(part, n):
                yield type(value)((*value[:k], other, *value[k + 1 :]))
    elif not isinstance(value, np.ndarray | tp.Tensor):
        yield n


def few(extreme):
    """Whether a value is among those that are tried while tracing too."""
    return any(str(n) in str(extreme) for n in (2**31, 2**62, 2**70, -1))


def bind(name, function, arguments):
    """Return a call without arguments."""
    arguments = dict(arguments)
    use = USES.get(name, lambda result: result)
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        parameters = []
    positional = [
        arguments.pop(p.name) for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)
    ]
    return lambda: use(function(*positional, **arguments))


def traced(name, function, arguments):
    """Return the same call with its first array a traced tensor; None without one."""
    names = [p for p, v in arguments.items() if isinstance(v, np.ndarray) and v.dtype == np.float32]
    if not names:
        return None

    def body(x):
        return bind(name, function, {**arguments, names[0]: x})()

    return lambda: tp.jit(body)(arguments[names[0]])


def calls():
    """Return all calls: (a text, a name, a function without arguments)."""
    rows = []
    for name, (function, arguments) in functions().items():
        for argument, value in arguments.items():
            if argument in NOT_NUMBERS:
                continue
            for extreme in variants(value):
                changed = {**arguments, argument: extreme}
                text = f"{name}, {argument}={extreme}"
                rows.append((text, name, bind(name, function, changed)))
                jitted = traced(name, function, changed) if few(extreme) else None
                if jitted is not None and name not in ("jit", "check_grads", "set_num_threads"):
                    rows.append((f"{text}, traced", name, jitted))
    return rows


#: The message of an error names the function: "layer.conv2d: ...", "add: ...".
NAMED = re.compile(r"^[A-Za-z_][\w.]*(, [a-z ]+)?: ")


def outcome(call):
    """Return what a call did: ok, a refusal, or what is wrong with the error."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        call()
    except (ValueError, TypeError, IndexError, MemoryError) as error:
        # Other libraries' messages do not name the function.
        own = type(error).__module__.split(".")[0] in ("builtins", "treepie")
        if own and NAMED.match(str(error)):
            return "refused"
        return f"bare {type(error).__name__}: {error}"
    except BaseException as error:
        return f"bare {type(error).__name__}: {error}"
    finally:
        faulthandler.cancel_dump_traceback_later()
    return "ok"


def main(start, stop):
    """Run the calls start to stop - 1; print before each its number, afterwards its outcome."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    rows = calls()
    for k in range(start, min(stop, len(rows))):
        print(k, end=" ", flush=True)
        started = time.perf_counter()
        print(json.dumps([rows[k][0], outcome(rows[k][2]), time.perf_counter() - started]), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
