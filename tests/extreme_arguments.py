"""The arguments of every public function that has integers: what `extreme_calls.py` puts extremes into."""

from pathlib import Path

import numpy as np

import treepie as tp

KEY = tp.rng.key(0)
X = np.arange(1.0, 13.0, dtype=np.float32).reshape(3, 4)
IMAGES = np.arange(72.0, dtype=np.float32).reshape(1, 2, 6, 6)
ROWS = np.arange(12.0, dtype=np.float32).reshape(1, 2, 6)
WINDOW, WINDOW_1D = np.ones((2, 2, 3, 3), np.float32), np.ones((2, 2, 3), np.float32)
SEQUENCE = np.ones((2, 3, 4), np.float32)
HEADS = np.ones((1, 2, 3, 4), np.float32)
CSV = Path(__file__).with_name("extreme.csv")
PARAMS = {"w": tp.ones(3)}


#: Gates of recurrent cells: (arrays of the weights and biases).
def _cell(gates):
    return [np.ones(s, np.float32) for s in ((4, 5 * gates), (5, 5 * gates), (5 * gates,), (5 * gates,))]


#: Function -> its required arguments and others that matter.
ARGUMENTS = {
    "augment.center_crop": {"size": (2, 2)},
    "augment.crop": {"size": (2, 2), "padding": (1, 1)},
    "augment.custom": {"fn": lambda x, u: x, "numbers": 1},
    "augment.cutmix": {"alpha": 1},
    "augment.cutout": {"size": (2, 2)},
    "augment.flip": {"horizontal": 1, "vertical": 1},
    "augment.jitter": {"brightness": 1, "contrast": 1},
    "augment.mixup": {"alpha": 1},
    "augment.shift": {"pixels": (2, 2)},
    "datasets.load_csv": {"file": str(CSV), "target": 0},
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
    "fn.conv_transpose1d": {
        "x": ROWS,
        "weight": WINDOW_1D,
        "bias": X[0, :2],
        "stride": (2,),
        "padding": (1,),
        "output_padding": (1,),
    },
    "fn.adaptive_avg_pool2d": {"x": IMAGES, "output_size": (2, 3)},
    "fn.global_avg_pool": {"x": IMAGES},
    "fn.global_max_pool": {"x": IMAGES},
    "fn.upsample": {"x": IMAGES, "scale": (2, 2)},
    "fn.dropout2d": {"x": IMAGES, "rate": 0.5, "rngs": KEY},
    "fn.instance_norm": {"x": IMAGES, "scale": X[0, :2], "bias": X[0, :2]},
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
    "layer.adaptive_avg_pool2d": {"output_size": (2, 3)},
    "layer.upsample": {"scale": (2, 2)},
    "layer.pad": {"padding": ((0, 1), (1, 0)), "value": 1},
    "layer.conv_transpose1d": {"in_channels": 2, "out_channels": 2, "kernel_size": 3},
    "layer.conv_transpose2d": {
        "in_channels": 2,
        "out_channels": 2,
        "kernel_size": (3, 3),
        "stride": (2, 2),
        "padding": (1, 1),
        "output_padding": (1, 1),
    },
    "layer.instance_norm": {"num_channels": 2},
    "layer.celu": {"alpha": 1},
    "layer.elu": {"alpha": 1},
    "layer.leaky_relu": {"negative_slope": 1},
    "layer.squareplus": {"b": 1},
    **{f"layer.{k}": {"axis": 1} for k in ("glu", "softmax", "log_softmax")},
    "layer.prelu": {"num_channels": 4, "weight_init": 1},
    "layer.dropout2d": {"rate": 0.5},
    "layer.reshape": {"shape": (2, 2)},
    "layer.permute": {"axes": (1, 0)},
    "layer.parallel": {"layers": [tp.layer.linear(4, 2)], "axis": 1},
    "layer.scale": {"num_features": 4},
    "layer.parametric_activation": {"activation": tp.layer.relu(), "num_features": 4},
    "layer.periodic_embedding": {"num_features": 4, "embed_dim": 2, "frequencies": 3, "sigma": 1},
    "layer.positional": {"max_length": 3, "embed_dim": 4},
    "layer.transformer_encoder": {"embed_dim": 4, "num_heads": 2, "hidden_dim": 5},
    "layer.transformer_decoder": {"embed_dim": 4, "num_heads": 2, "hidden_dim": 5},
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
    **{f"optim.{k}": {"lr": 1} for k in ("lamb", "lion", "nadam")},
    "optim.add_decayed_weights": {"rate": 1},
    "optim.clip_norm": {"max_norm": 1},
    "optim.clip_value": {"max_value": 1},
    "optim.ema": {"decay": 0},
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
    *("datasets.cifar10", "datasets.fashion_mnist"),
    *("value_and_grad_aux", "vjp", "checkpoint.load", "checkpoint.load_state", "checkpoint.save"),
    *("checkpoint.save_state", "datasets.digits", "datasets.mnist", "distributed.world", "hub.load_config"),
    *("hub.assign", "hub.rename"),
    *("hub.load_weights", "layer.compose", "layer.flatten", "layer.gelu", "layer.lambda_", "layer.relu"),
    *("layer.bidirectional", "layer.model", "layer.global_avg_pool", "layer.global_max_pool"),
    *(
        f"layer.{k}"
        for k in (
            *("gelu_approx", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "log_sigmoid", "mish"),
            *("relu6", "selu", "softplus", "softsign", "sparse_plus", "sparse_sigmoid", "swish"),
        )
    ),
    *("layer.residual", "layer.sequential", "layer.sigmoid", "layer.silu", "layer.tanh", "metric.eval"),
    *("metric.eval_many", "optim.apply_updates", "optim.global_norm"),
    *("optim.chain", "optim.ema_params", "optim.frozen", "optim.partition"),
    *(f"ptree.{k}" for k in ("count_parameters", "flatten", "flatten_with_paths", "fold", "leaves", "map")),
    *("ptree.register_dataclass", "ptree.zeros_like", "data.stack_batch", "checkpoint.every"),
    *("init.uniform", "init.normal"),
}

#: Parameters that are functions, trees or keys.
NOT_NUMBERS = {"f", "function", "reference", "args", "ctx", "rngs", "key", "mask", "model", "layer"}
