"""What a call with wrong arguments says: the function, how it is called, and the argument that was meant.

Python's own message names neither. An error of the call itself is raised before the function runs, so only a
caller can add to it: for rows of the op table that is the function of `table.public`, which there is anyway;
for other public functions one more Python call (0.1 us), which `explain_calls` returns.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def no_attribute(message: str) -> AttributeError:
    """Return an AttributeError whose message has the suggestion, so that Python does not add another."""
    error = AttributeError(message)
    error.name = None
    return error


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the name that is most like a misspelt one, whatever its case; None if none is."""
    lower = {n.lower(): n for n in names}
    near = difflib.get_close_matches(name.lower(), lower, 1, cutoff)
    return lower[near[0]] if near else None


def did_you_mean(name: str, names: Iterable[str], prefix: str = "") -> str:
    """Return "did you mean ...?" with the name that is most like a misspelt one; "" if none is.

    prefix: of the names in Python, such as "tp.loss."; without one the name is a string.
    """
    near = nearest(name, names)
    if near is None:
        return ""
    return f"did you mean {prefix}{near}?" if prefix else f"did you mean {near!r}?"


def explain_calls(function: Callable[P, R], name: str = "") -> Callable[P, R]:
    """Return a function whose errors for wrong arguments say which ones it takes.

    name: of a function in messages, such as "layer.linear"; a method is named with the class of its object.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except TypeError:
            explained = call_error(function, name, args, kwargs)  # None for an error inside of the function
            if explained is not None:
                raise explained from None
            raise

    call.explained = True  # type: ignore[attr-defined]
    return call


def call_error(function: Callable[..., Any], name: str, args: Any, kwargs: Any) -> TypeError | None:
    """Return an error for arguments that a function does not take, None for those that it takes."""
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        reason = str(error)
    else:
        return None
    name = name or function.__qualname__
    if "self" in signature.parameters and args:
        method = name.rpartition(".")[2]
        name = type(args[0]).__name__ + f".{method}" * (method != "__init__")
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    named = {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    unexpected = next((k for k in kwargs if k not in named), None)
    if unexpected is not None:
        hint = _meant(unexpected, list(named))
        return TypeError(f"{name}: there is no argument {unexpected!r}, {hint}")
    count = len(args) - (len(parameters) < len(signature.parameters))
    return TypeError(f"{name}: {_wrong_count(name, parameters, count, kwargs, reason)}")


def _meant(unexpected: str, names: list[str]) -> str:
    """Return what to use for an argument that there is not."""
    for known in _OTHERS.get(unexpected, ()):
        if known in names:
            return f"did you mean {known!r}?"
    if unexpected in _ELSEWHERE:
        return f"expected {_ELSEWHERE[unexpected]}"
    return did_you_mean(unexpected, names) or (f"expected {', '.join(names)}" if names else "expected none")


def _wrong_count(name: str, parameters: list[inspect.Parameter], count: int, kwargs: Any, reason: str) -> str:
    """Return what is wrong with the number of arguments. count: of those by position."""
    function = name.rpartition(".")[2]
    varying = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    positional = [p for p in parameters if p.kind not in (*varying, p.KEYWORD_ONLY)]
    if len(positional) == 1 and str(positional[0].annotation).startswith("Sequence") and count > 1:
        return f"{count} arguments, expected one list: {function}([{', '.join('abc'[:count])}])"
    required = [p for p in parameters if p.default is p.empty and p.kind not in varying]
    shown = [f"{p.name}=..." if p.kind is p.KEYWORD_ONLY else p.name for p in required]
    if len(parameters) > len(required):
        shown.append("...")
    takes = f"{function}({', '.join(shown)})"
    missing = [p.name for p in required if p.name not in kwargs and p not in positional[:count]]
    if missing:
        verb = "are" if len(missing) > 1 else "is"
        return f"{' and '.join(missing)} {verb} missing, expected {takes}"
    if reason.startswith("too many") and name not in _USUAL_CALLS:
        takes = f"{function}({', '.join(p.name for p in positional)})"
    return f"{reason}, expected {_USUAL_CALLS.get(name, takes)}"


#: What a call should look like, where the names of required arguments do not say it.
_USUAL_CALLS = {"Data.prepare": "arrays in one tuple: Data.prepare((x, y), batch_size=32)"}

#: Arguments of other libraries, and what does the same here.
_ELSEWHERE = {
    "accelerator": "none: tensors are on the CPU",
    "activation": "a layer after this one, such as tp.layer.relu()",
    "batch_size": "it in the data: tp.Data.prepare((x, y), batch_size=32)",
    "device": "none: tensors are on the CPU",
    "initial_epoch": "resume=True, with a checkpoint",
    "inplace": "none: tensors are immutable, and a result is a new one",
    "learning_rate": "it in the optimizer: tp.optim.adam(1e-3)",
    "lr": "it in the optimizer: tp.optim.adam(1e-3)",
    "metrics": "validate=(data, metrics)",
    "momentum": "tp.optim.sgd(lr, momentum=0.9) or tp.optim.rmsprop",
    "optimizer": "it in the trainer: tp.Trainer(model, tp.optim.adam(1e-3))",
    "out": "none: tensors are immutable, and a result is a new one",
    "reduction": "none: a loss is the mean; write others as ops, such as tp.square(pred - target).sum()",
    "requires_grad": "none: tp.grad(f)(params) takes the gradient of a function",
    "sample_weight": "elements (input, target, weight): tp.Data.prepare((x, y, weight), batch_size=32)",
    "shuffle": "it in the data: tp.Data.prepare((x, y), batch_size=32, shuffle=tp.rng.key(0))",
    "steps_per_epoch": "none: an epoch is a pass over the data",
    "validation_split": "validate=(data, metrics)",
    "verbose": "progress=True or progress=False",
    "weight_decay": "tp.optim.adamw, or tp.optim.chain with tp.optim.add_decayed_weights",
    "where": "tp.where(condition, x, 0.0) as the operand",
    "workers": "data.prefetch(2), which prepares batches in a thread",
}

#: Arguments of other libraries, and their names here.
_OTHERS: dict[str, tuple[str, ...]] = {
    "a": ("x", "arrays"),
    "a_max": ("high",),
    "a_min": ("low",),
    "activation_fn": ("activation",),
    "ary": ("x",),
    "axes": ("axis",),
    "beta_1": ("b1",),
    "beta_2": ("b2",),
    "betas": ("b1",),
    "criterion": ("loss",),
    "dataset": ("data", "arrays"),
    "dim": ("axis", "axes"),
    "dims": ("axes", "axis"),
    "epsilon": ("eps",),
    "filename": ("path", "file"),
    "filepath": ("path", "file"),
    "input": ("x",),
    "keepdim": ("keepdims",),
    "layer_norm_eps": ("eps",),
    "learning_rate": ("lr",),
    "loss_fn": ("loss",),
    "max": ("high",),
    "min": ("low",),
    "monitor": ("metric",),
    "n_classes": ("classes", "num_classes"),
    "n_epochs": ("epochs",),
    "newshape": ("shape",),
    "num_classes": ("classes",),
    "num_epochs": ("epochs",),
    "p": ("rate",),
    "random_state": ("key", "rngs", "shuffle"),
    "seed": ("key", "rngs", "shuffle"),
    "size": ("shape",),
    "state": ("st",),
    "train_loader": ("data",),
    "use_bias": ("bias",),
    "validation_data": ("validate",),
    "weights": ("sample_weight",),
    "y_pred": ("pred", "logits"),
    "y_true": ("target", "targets", "labels"),
}
