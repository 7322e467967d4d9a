"""Calls of every public function with integers beyond what a size, a position or an int64 can be.

python tests/extreme_calls.py START STOP    runs some of the calls, a line of JSON for each

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

#: 2**31 is the least that int32 can not hold, 2**63 the least that int64 can not.
EXTREMES = [2**31, 2**32, 2**40, 2**62, 2**63, 2**64, 2**70, -1, -(2**31), -(2**32), -(2**63), -(2**70)]
#: Bytes that a process may have, and seconds that a call may take.
MEMORY, SECONDS = 6 << 30, 15

TRACED = "t" in sys.argv
INT = "Int"  # a parameter whose values below are drawn although its type does not say int
KEY = tp.rng.key(0)
X = np.arange(1.0, 13.0, dtype=np.float32).reshape(3, 4)
IMAGES = np.arange(72.0, dtype=np.float32).reshape(1, 2, 6, 6)
ROWS = np.arange(12.0, dtype=np.float32).reshape(1, 2, 6)
WINDOW, WINDOW_1D = np.ones((2, 2, 3, 3), np.float32), np.ones((2, 2, 3), np.float32)
SEQUENCE = np.ones((2, 3, 4), np.float32)
HEADS = np.ones((1, 2, 3, 4), np.float32)
PARAMS = {"w": tp.ones(3)}


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


#: Gates of recurrent cells: (arrays of the weights and biases).
def _cell(gates):
    return [np.ones(s, np.float32) for s in ((4, 5 * gates), (5, 5 * gates), (5 * gates,), (5 * gates,))]


#: Function -> its required arguments and others that matter.
ARGUMENTS = {
    "arange": {"start": 0, "stop": 3},
    "broadcast_to": {"x": X, "shape": (2, 3, 4)},
    "clip": {"x": X, "low": 1, "high": 2},
    "concatenate": {"xs": [X, X]},
    "expand_dims": {"x": X, "axis": (0, 1)},
    "eye": {"n": 3, "m": 2},
    "full": {"shape": (2, 3), "fill_value": 1},
    "full_like": {"x": np.arange(3), "fill_value": 1},
    "gather": {"x": X, "indices": [[0, 1], [1, 2], [0, 0]], "axis": 1},
    "linspace": {"start": 0, "stop": 1, "num": 3},
    "moveaxis": {"x": X, "source": (0, 1), "destination": (1, 0)},
    "one_hot": {"indices": [0, 1], "size": 3},
    "pad": {"x": X, "pad_width": ((1, 1), (0, 2)), "value": 1},
    "repeat": {"x": X, "repeats": (2, 1, 3), "axis": 0},
    "reshape": {"x": X, "shape": (2, 6)},
    "roll": {"x": X, "shift": (1, 2), "axis": (0, 1)},
    "set_num_threads": {"n": 2},
    "split": {"x": X, "indices_or_sections": (1, 2), "axis": 0},
    "stack": {"xs": [X, X]},
    "swapaxes": {"x": X, "axis1": 0, "axis2": 1},
    "take": {"x": X, "indices": [0, 1], "axis": 0},
    "take_along_axis": {"x": X, "indices": [[0, 1], [1, 2], [0, 0]], "axis": 1},
    "tensor": {"data": [1, 2]},
    "tile": {"x": X, "reps": (2, 3)},
    "top_k": {"x": X, "k": 2},
    "transpose": {"x": X, "axes": (1, 0)},
    "where": {"condition": X > 3, "a": X, "b": 1},
    "jit": {"function": lambda x: x, "static": (), "donate": ()},
    "check_grads": {"f": tp.sum, "args": (np.ones(2),)},
    "outer": {"a": X[0], "b": X[0]},
    "matmul": {"a": X, "b": X.T},
    "fn.batch_norm": {"x": X, "mean": X[0], "var": X[0], "scale": X[0], "bias": X[0]},
    "fn.conv1d": {
        "x": ROWS,
        "weight": WINDOW_1D,
        "bias": X[0, :2],
        "stride": (1,),
        "dilation": (1,),
        "padding": (1, 1),
    },
    "fn.conv2d": {
        "x": IMAGES,
        "weight": WINDOW,
        "bias": X[0, :2],
        "stride": (1, 1),
        "dilation": (1, 1),
        "padding": ((1, 1), (1, 1)),
    },
    "fn.conv_transpose2d": {
        "x": IMAGES,
        "weight": WINDOW,
        "bias": X[0, :2],
        "stride": (2, 2),
        "padding": (1, 1),
        "output_padding": (1, 1),
    },
    "fn.dot_product_attention": {"q": HEADS, "k": HEADS, "v": HEADS, "scale": 1.0},
    "fn.dropout": {"x": X, "rate": 0.5, "rngs": KEY},
    "fn.embedding": {"indices": [0, 1], "weight": X},
    "fn.group_norm": {"x": IMAGES, "num_groups": 2, "scale": X[0, :2], "bias": X[0, :2]},
    "fn.gru": dict(
        zip(
            ("x", "h0", "weight_ih", "weight_hh", "bias_ih", "bias_hh"),
            (SEQUENCE, None, *_cell(3)),
            strict=False,
        )
    ),
    "fn.lstm": dict(
        zip(
            ("x", "h0", "c0", "weight_ih", "weight_hh", "bias_ih", "bias_hh"),
            (SEQUENCE, None, None, *_cell(4)),
            strict=False,
        )
    ),
    "fn.layer_norm": {"x": X, "gamma": X[0], "beta": X[0]},
    "fn.rms_norm": {"x": X, "scale": X[0]},
    "fn.linear": {"x": X, "weight": X.T, "bias": X[0, :3]},
    "fn.prelu": {"x": X, "weight": X[0, :1]},
    **{
        f"fn.{kind}_pool1d": {"x": ROWS, "kernel_size": (2,), "stride": (2,), "padding": (1, 1)}
        for kind in ("max", "avg")
    },
    **{
        f"fn.{kind}_pool2d": {
            "x": IMAGES,
            "kernel_size": (2, 2),
            "stride": (2, 2),
            "padding": ((1, 1), (0, 1)),
        }
        for kind in ("max", "avg")
    },
    "init.constant": {"value": 1},
    "init.variance_scaling": {"scale": 1, "mode": "fan_in", "distribution": "uniform"},
    **{
        f"init.{name}": {"key": KEY, "shape": (2, 3)}
        for name in (
            "ones",
            "zeros",
            *(f"{n}_{k}" for n in ("he", "glorot", "lecun") for k in ("normal", "uniform")),
        )
    },
    "layer.avg_pool1d": {"kernel_size": 2, "stride": 1},
    "layer.max_pool1d": {"kernel_size": 2, "stride": 1},
    "layer.avg_pool2d": {"kernel_size": (2, 2), "stride": (1, 1), "padding": ((0, 1), (1, 0))},
    "layer.max_pool2d": {"kernel_size": (2, 2), "stride": (1, 1), "padding": ((0, 1), (1, 0))},
    "layer.batch_norm": {"num_features": 2},
    "layer.check": {"layer": tp.layer.linear(4, 2), "input": X},
    "layer.conv1d": {"in_channels": 2, "out_channels": 2, "padding": (1, 1)},
    "layer.conv2d": {"in_channels": 2, "out_channels": 2, "padding": ((1, 1), (1, 1))},
    "layer.dropout": {"rate": 0.5},
    "layer.embedding": {"vocab_size": 5, "embed_dim": 2},
    "layer.group_norm": {"num_groups": 2, "num_channels": 2},
    "layer.gru": {"in_features": 4, "hidden_size": 3},
    "layer.lstm": {"in_features": 4, "hidden_size": 3},
    "layer.layer_norm": {"dim": 4},
    "layer.rms_norm": {"dim": 4},
    "layer.linear": {"in_features": 4, "out_features": 2},
    "layer.multi_head_attention": {"embed_dim": 4, "num_heads": 2, "num_kv_heads": 1},
    "layer.summary": {"model": tp.layer.linear(4, 2), "input_shape": (3, 4)},
    "loss.binary_cross_entropy": {"logits": X, "labels": X > 3},
    "loss.cross_entropy": {"logits": X, "one_hot": X / X.sum(1, keepdims=True)},
    "loss.cross_entropy_sparse": {"logits": X, "indices": [0, 1, 2], "ignore_index": 1},
    **{
        f"{m}.{k}": {"pred": X[0], "target": X[1]}
        for m, k in (("loss", "huber"), ("loss", "mae"), ("loss", "mse"))
    },
    **{f"metric.{k}": {"pred": X[0], "target": X[1]} for k in ("mae", "mse", "r2")},
    **{
        f"metric.{k}": {"logits": X, "targets": [0, 1, 2]}
        for k in ("accuracy", "confusion_matrix", "f1", "precision", "recall", "top_k_accuracy")
    },
    "metric.auc_roc": {"scores": X[0], "targets": [0, 1, 0, 1]},
    "metric.binary_accuracy": {"pred": X[0], "targets": [0, 1, 0, 1]},
    **{f"optim.{k}": {"lr": 1} for k in ("adagrad", "adam", "adamw", "rmsprop", "sgd")},
    "optim.clip_by_global_norm": {"max_norm": 1, "grads": PARAMS},
    "rng.bernoulli": {"key": KEY, "p": 0.5, "shape": (2, 3)},
    "rng.categorical": {"key": KEY, "logits": X},
    "rng.fold_in": {"key": KEY, "data": 1},
    "rng.key": {"seed": 1},
    **{f"rng.{k}": {"key": KEY, "shape": (2, 3)} for k in ("normal", "uniform", "truncated_normal")},
    "rng.permutation": {"key": KEY, "n": 3},
    "rng.randint": {"key": KEY, "shape": (2, 3), "low": 0, "high": 5},
    "rng.split": {"key": KEY, "n": 2},
}

#: Functions that take no integers, or nothing but functions, trees, paths.
NO_INTEGERS = {
    "einsum",
    *(
        "checkpoint_activations",
        "explain",
        "get_num_threads",
        "grad",
        "pure",
        "show_config",
        "value_and_grad",
    ),
    *("value_and_grad_aux", "vjp", "checkpoint.load", "checkpoint.load_state", "checkpoint.save"),
    *("checkpoint.save_state", "datasets.digits", "datasets.mnist", "distributed.world", "hub.load_config"),
    *("hub.load_weights", "layer.compose", "layer.flatten", "layer.gelu", "layer.lambda_", "layer.relu"),
    *("layer.residual", "layer.sequential", "layer.sigmoid", "layer.silu", "layer.tanh", "metric.eval"),
    *("metric.eval_many", "optim.apply_updates", "optim.global_norm"),
    *(f"ptree.{k}" for k in ("count_parameters", "flatten", "flatten_with_paths", "fold", "leaves", "map")),
    *("ptree.register_dataclass", "ptree.zeros_like", "data.stack_batch", "checkpoint.every"),
    *("init.uniform", "init.normal"),
}

#: Function -> what uses its result.
USES = {
    "init.constant": lambda f: f(KEY, (2,)),
    "init.variance_scaling": lambda f: f(KEY, (2, 3)),
    "jit": lambda f: f(X),
    **{f"optim.{k}": _optimize for k in ("adagrad", "adam", "adamw", "rmsprop", "sgd")},
    **{f"layer.{k}": _apply(ROWS) for k in ("avg_pool1d", "max_pool1d", "conv1d")},
    **{
        f"layer.{k}": _apply(IMAGES)
        for k in ("avg_pool2d", "max_pool2d", "conv2d", "batch_norm", "group_norm")
    },
    **{
        f"layer.{k}": _apply(SEQUENCE)
        for k in ("gru", "lstm", "layer_norm", "rms_norm", "multi_head_attention")
    },
    **{f"layer.{k}": _apply(X) for k in ("linear", "dropout")},
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
    from test_signatures import FUNCTIONS

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
            for extreme in variants(value):
                changed = {**arguments, argument: extreme}
                text = f"{name}, {argument}={extreme}"
                rows.append((text, name, bind(name, function, changed)))
                jitted = traced(name, function, changed)
                if TRACED and jitted is not None and name not in ("jit", "check_grads", "set_num_threads"):
                    rows.append((f"{text}, traced", name, jitted))
    return rows


#: The message of an error names the function: "layer.conv2d: ...", "add: ...".
NAMED = re.compile(r"^[A-Za-z_][\w.]*(, [a-z_]+)?: ")


def outcome(call):
    """Return what a call did: ok, a refusal, or what is wrong with the error."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        call()
    except (ValueError, TypeError, IndexError, MemoryError) as error:
        plain = type(error).__module__ == "builtins"
        if plain and NAMED.match(str(error)):
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
