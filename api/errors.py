"""What error messages add: the layer or the batch that an error is about, and the name that was meant."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

#: Errors whose message gets the layer's path; others, which may have arguments of any kind, get a note.
_PLAIN = (IndexError, TypeError, ValueError)


#: Whether errors have notes, which Python 3.10 does not.
_NOTES = hasattr(BaseException, "add_note")


def add_note(error: BaseException, text: str) -> None:
    """Add a line to what a traceback shows of an error; before Python 3.11 to its message."""
    if _NOTES:
        error.add_note(text)  # type: ignore[attr-defined,unused-ignore]
    elif len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]}\n{text}",)


def name_layer(error: Exception, part: str, call: str) -> None:
    """Name the layer that raised an error: "layers.2: linear(31, 10): x has 32 features, expected 31".

    Each container calls it for its own layers, from the innermost one out.

    part: of the path, such as "layers.2".  call: the layer's name, such as "linear(31, 10)".
    """
    inner: tuple[str, str] | None = getattr(error, "_layer_path", None)
    path, call = (part, call) if inner is None else (f"{part}.{inner[0]}", inner[1])
    error._layer_path = path, call  # type: ignore[attr-defined]
    if type(error) in _PLAIN and len(error.args) == 1 and isinstance(error.args[0], str):
        message = error.args[0]
        if inner is None:
            function, colon, rest = message.partition(": ")
            repeated = colon and function.removeprefix("layer.") == call.split("(")[0]
            message = f"{part}: {call}: {rest if repeated else message}"
        else:
            message = f"{part}.{message}"
        error.args = (message,)
        return
    notes = getattr(error, "__notes__", [])
    if inner is not None and notes:
        notes[-1] = f"in {path}: {call}"
    else:
        add_note(error, f"in {path}: {call}")


def no_attribute(message: str) -> AttributeError:
    """Return an AttributeError whose message has the suggestion, so that Python does not add another."""
    error = AttributeError(message)
    error.name = None
    return error


def did_you_mean(name: str, names: Iterable[str], prefix: str = "") -> str:
    """Return "did you mean ...?" with the name that is most like a misspelt one; "" if none is.

    prefix: of the names in Python, such as "tp.loss."; without one the name is a string.
    """
    lower = {n.lower(): n for n in names}
    near = difflib.get_close_matches(name.lower(), lower, 1)
    if not near:
        return ""
    return f"did you mean {prefix}{lower[near[0]]}?" if prefix else f"did you mean {lower[near[0]]!r}?"


def explain_calls(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that a call with wrong arguments says which ones the function takes."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except TypeError:
            explained = call_error(function, args, kwargs)  # None for an error inside of the function
            if explained is not None:
                raise explained from None
            raise

    return call


def call_error(function: Callable[..., Any], args: Any, kwargs: Any) -> TypeError | None:
    """Return an error for arguments that a function does not take, None for those that it takes."""
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        reason = str(error)
    else:
        return None
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    names = [p.name for p in parameters]
    name = _public_name(function)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    count = len(args) - (len(parameters) < len(signature.parameters))
    unexpected = next((k for k in kwargs if k not in names), None)
    if unexpected is not None:
        known = _OTHERS.get(unexpected)
        if unexpected in _ELSEWHERE:
            return TypeError(
                f"{name}: there is no argument {unexpected!r}, expected {_ELSEWHERE[unexpected]}"
            )
        hint = f"did you mean {known!r}?" if known in names else did_you_mean(unexpected, names)
        return TypeError(
            f"{name}: there is no argument {unexpected!r}, {hint or 'expected ' + ', '.join(names)}"
        )
    if len(positional) == 1 and str(positional[0].annotation).startswith("Sequence") and count > 1:
        return TypeError(
            f"{name}: {count} arguments, expected one list: {function.__name__}([{', '.join('abc'[:count])}])"
        )
    required = [p.name for p in positional if p.default is p.empty]
    more = ", ..." if len(positional) > len(required) else ""
    missing = [p.name for p in positional[count:] if p.default is p.empty and p.name not in kwargs]
    if missing:
        verb = "are" if len(missing) > 1 else "is"
        return TypeError(
            f"{name}: {' and '.join(missing)} {verb} missing, expected "
            f"{function.__name__}({', '.join(required)}{more})"
        )
    takes = f"{function.__name__}({', '.join(required)}{more})"
    return TypeError(f"{name}: {reason}, expected {_USUAL_CALLS.get(name, takes)}")


#: What a call should look like, where the names of required arguments do not say it.
_USUAL_CALLS = {"Data.prepare": "arrays in one tuple: Data.prepare((x, y), batch_size=32)"}

#: Arguments of other libraries, and what does the same here.
_ELSEWHERE = {
    "activation": "a layer after this one, such as tp.layer.relu()",
    "batch_size": "it in the data: tp.Data.prepare((x, y), batch_size=32)",
    "metrics": "validate=(data, metrics)",
    "validation_split": "validate=(data, metrics)",
    "verbose": "progress=True or progress=False",
}

#: Arguments of other libraries, and their names here.
_OTHERS = {
    "activation_fn": "activation",
    "betas": "b1",
    "beta_1": "b1",
    "beta_2": "b2",
    "criterion": "loss",
    "dim": "axis",
    "epsilon": "eps",
    "layer_norm_eps": "eps",
    "learning_rate": "lr",
    "loss_fn": "loss",
    "n_epochs": "epochs",
    "num_epochs": "epochs",
    "p": "rate",
    "use_bias": "bias",
    "validation_data": "validate",
}


def _public_name(function: Callable[..., Any]) -> str:
    """Return a function's name in messages, such as "layer.linear" or "Trainer.fit"."""
    if "." in function.__qualname__:
        return function.__qualname__
    package, *modules = function.__module__.removeprefix("treepie.").split(".")
    schedules = ".schedule" if modules[-1:] == ["schedule"] else ""
    return f"{package}{schedules}.{function.__name__}"
