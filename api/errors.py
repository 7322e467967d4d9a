"""What error messages add: the layer or the batch that an error is about, and the name that was meant.

Suggestions are in `autodiff/calls.py`, since calls of ops have them too.
"""

from __future__ import annotations

from treepie.autodiff.calls import (
    did_you_mean as did_you_mean,
    explain_calls as explain_calls,
    nearest as nearest,
    no_attribute as no_attribute,
)

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
