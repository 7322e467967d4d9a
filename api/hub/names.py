"""Names of weights: `rename` changes those of other libraries, `assign` puts weights into a model by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from treepie.autodiff import Tensor, ptree, tensor
from treepie.autodiff.arguments import as_tensor, described
from treepie.autodiff.tensor import TensorLike

from ..layer import Vars

#: What a name that a rule matches becomes: another name, several for parts, or None for no weight.
Replacement = str | Sequence[str] | None

#: Names that a message lists of each kind.
_MOST_NAMES = 10


def rename(
    weights: Mapping[str, TensorLike],
    rules: Mapping[str, Replacement],
    transpose: str | None = None,
) -> dict[str, Tensor]:
    r"""Return weights under other names, and matrices transposed, such as PyTorch's for treepie's layers.

    weights: name -> array, such as from `load_weights` or a `state_dict()` of PyTorch.
    rules: regular expression -> replacement, as for `re.sub`: every match in a name is replaced. All rules
        are applied, in their order. A replacement of None drops weights whose name has a match. A list
        divides weights into equal parts along the first axis, and has a replacement for each, such as
        ["q_proj", "k_proj", "v_proj"] for the `in_proj_weight` of PyTorch's attention.
    transpose: a regular expression; matrices, arrays of 2 axes, whose new name has a match are transposed.

    What differs from PyTorch: the weights of `linear`, `lstm`, `gru` and of attention are transposed; the
    scale and shift of `layer_norm` are named gamma and beta, those of other norms scale and bias; the weight
    of an embedding is named embedding. Convolutions have the same layout. A transpose that is missing is
    noticed by `assign`, except for square matrices.

    Raises ValueError for two weights that get the same name, for a rule that is no regular expression, and
    for a `transpose` that matches no matrix.

    >>> import treepie as tp
    >>> theirs = {"bert.pooler.dense.weight": tp.ones((3, 2)), "bert.LayerNorm.weight": tp.ones(2)}
    >>> rules = {"^bert.": "", "LayerNorm.weight": "norm.gamma", r"(\w+).dense": r"\1"}
    >>> ours = tp.hub.rename(theirs, rules, transpose="weight$")
    >>> {name: x.shape for name, x in ours.items()}
    {'pooler.weight': (2, 3), 'norm.gamma': (2,)}
    """
    _check_mapping("hub.rename", "weights", weights, "a dict of arrays by name")
    _check_mapping("hub.rename", "rules", rules, "a dict {regular expression: replacement}")
    compiled = [(_compiled(pattern), _replacement(pattern, new)) for pattern, new in rules.items()]
    flipped = None if transpose is None else _compiled(transpose)
    result: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    matrices = 0
    for source in weights:
        for name, x in _renamed(source, _weight("hub.rename", weights, source), compiled):
            if name in result:
                raise ValueError(
                    f"hub.rename: {sources[name]!r} and {source!r} both become {name!r}, expected another "
                    "name for each"
                )
            matrix = flipped is not None and x.ndim == 2 and flipped.search(name) is not None
            matrices += matrix
            result[name], sources[name] = x.T if matrix else x, source
    if weights and flipped is not None and not matrices:
        shown = _listed([name for name, x in result.items() if x.ndim == 2], ", ") or "there is none"
        raise ValueError(
            f"hub.rename: transpose is {transpose!r}, expected a match in the new name of a matrix ({shown})"
        )
    return result


def _renamed(
    name: str, x: Tensor, rules: Sequence[tuple[re.Pattern[str], Replacement]]
) -> Iterator[tuple[str, Tensor]]:
    """Return the new names of a weight, each with its part, by the rules in their order."""
    for k, (pattern, new) in enumerate(rules):
        if pattern.search(name) is None:
            continue
        if new is None:
            return
        if not isinstance(new, str):
            parts = list(new)
            if x.ndim == 0 or not parts or x.shape[0] % len(parts):
                raise ValueError(
                    f"hub.rename: {name!r} has shape {x.shape}, expected a first axis that is divided into "
                    f"{len(parts)} equal parts"
                )
            size = x.shape[0] // len(parts)
            for n, part in enumerate(parts):
                rest = x[n * size : (n + 1) * size]
                yield from _renamed(_substituted(pattern, part, name), rest, rules[k + 1 :])
            return
        name = _substituted(pattern, new, name)
    yield name, x


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"hub.rename: {pattern!r} is no regular expression ({error})") from None


def _replacement(pattern: str, new: Any) -> Replacement:
    parts = [new] if isinstance(new, str) or new is None else new
    if not isinstance(parts, list | tuple) or not all(isinstance(x, str) for x in parts if new is not None):
        raise TypeError(
            f"hub.rename: rules has the replacement {new!r} for {pattern!r}, expected a name, a list of "
            "names, or None"
        )
    return new  # type: ignore[no-any-return]


def _substituted(pattern: re.Pattern[str], new: str, name: str) -> str:
    try:
        return pattern.sub(new, name)
    except (re.error, IndexError) as error:
        raise ValueError(
            f"hub.rename: {new!r} can not replace {pattern.pattern!r} in {name!r} ({error})"
        ) from None


@dataclass(frozen=True)
class Report:
    """What `assign` did: names that were loaded, and those that only the model or only the weights have.

    missing_keys: names of the model that the weights do not have; its values were kept.
    unexpected_keys: names of weights that the model does not have; they were not used.

    >>> import treepie as tp
    >>> tp.hub.Report(["head.weight"], [], ["pooler.weight"])
    1 of 1 loaded
      1 unexpected, which the model does not have:
        pooler.weight
    """

    loaded: list[str]
    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        """Show the numbers of names, and names that differ."""
        return self._text(str, str)

    def _text(self, missing: Callable[[str], str], unexpected: Callable[[str], str]) -> str:
        """Return the text, with functions that describe a name."""
        text = f"{len(self.loaded)} of {len(self.loaded) + len(self.missing_keys)} loaded"
        text += _section("missing, which the weights do not have", self.missing_keys, missing)
        return text + _section("unexpected, which the model does not have", self.unexpected_keys, unexpected)


T = TypeVar("T")


def assign(vars: T, weights: Mapping[str, TensorLike], strict: bool = True) -> tuple[T, Report]:
    """Return a model's variables with the values of weights, in the model's dtypes, and a report of names.

    vars: `Vars`, or a tree of parameters, such as a part of a model: `vars.params["bert"]`. Names are paths
        as of `ptree.flatten_with_paths`, "layers.0.weight"; those of `Vars` are of parameters and of state,
        such as running statistics.
    weights: name -> array, see `rename`.
    strict: whether names that only the model or only the weights have are an error. False keeps the model's
        values for those that are missing, such as a new head's, and ignores the others.

    Raises one ValueError with all names that differ, the ones likely meant, and with all shapes that differ,
    which strict=False does not allow either; and for dtypes that can not be converted.

    >>> import treepie as tp
    >>> vars = tp.layer.linear(3, 2).init(tp.rng.key(0))
    >>> vars, report = tp.hub.assign(vars, {"weight": tp.ones((3, 2))}, strict=False)
    >>> report
    1 of 2 loaded
      1 missing, which the weights do not have:
        bias
    """
    name = "hub.assign"
    _check_mapping(name, "weights", weights, "a dict of arrays by name")
    rows = dict(ptree.flatten_with_paths(vars.params if isinstance(vars, Vars) else vars))
    if isinstance(vars, Vars):
        for path, leaf in ptree.flatten_with_paths(vars.state):
            if path in rows:
                raise ValueError(
                    f"{name}: {path!r} is a parameter and a state, expected vars.params and vars.state in "
                    "two calls"
                )
            rows[path] = leaf
    model = {path: as_tensor(leaf) for path, leaf in rows.items()}
    sources = {path: _weight(name, weights, path) for path in weights}
    report = Report(
        [path for path in model if path in sources],
        [path for path in model if path not in sources],
        [path for path in sources if path not in model],
    )
    wrong = [line for path in report.loaded if (line := _misfit(path, sources[path], model[path]))]
    if wrong or (strict and (report.missing_keys or report.unexpected_keys)):
        raise ValueError(f"{name}: {_explained(report, wrong, model, sources, strict)}")
    values = {path: _converted(name, path, sources[path], model[path]) for path in report.loaded}

    def filled(tree: Any) -> Any:
        paths = iter([path for path, _ in ptree.flatten_with_paths(tree)])
        return ptree.map(lambda leaf: values.get(next(paths), leaf), tree)

    if isinstance(vars, Vars):
        return Vars(filled(vars.params), filled(vars.state), vars.dtype), report  # type: ignore[return-value]
    return filled(vars), report


def _check_mapping(function: str, argument: str, value: Any, expected: str) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{function}: {argument} is {described(value)}, expected {expected}")


def _weight(function: str, weights: Mapping[str, TensorLike], name: str) -> Tensor:
    try:
        return as_tensor(weights[name])
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{function}: weights[{name!r}] is no array ({error})") from None


def _misfit(name: str, x: Tensor, expected: Tensor) -> str:
    """Return what is wrong with a weight's shape or dtype; "" for one that fits."""
    if x.shape != expected.shape:
        flipped = x.ndim == 2 and x.shape == expected.shape[::-1]
        hint = ": transposed (transpose= of hub.rename)" if flipped else ""
        return f"{name} has shape {x.shape}, expected {expected.shape}{hint}"
    if not np.can_cast(x.dtype, expected.dtype, "same_kind"):
        return f"{name} is {x.dtype.name}, expected what {expected.dtype.name} can hold"
    return ""


def _converted(function: str, name: str, x: Tensor, like: Tensor) -> Tensor:
    if x.dtype == like.dtype:
        return x
    try:
        return tensor(x.numpy(), like.dtype)  # which, other than a cast of a tensor, checks the range
    except ValueError:
        message = f"{function}: weights[{name!r}] has numbers beyond {like.dtype.name}'s range"
        raise ValueError(message) from None


def _explained(
    report: Report,
    wrong: Sequence[str],
    model: Mapping[str, Tensor],
    sources: Mapping[str, Tensor],
    strict: bool,
) -> str:
    """Return a report as an error's message, with shapes and with the names that may be meant."""

    def missing(name: str) -> str:
        return f"{name} {model[name].shape}{_likely(name, model[name], report.unexpected_keys, sources)}"

    if not strict:  # names alone are no error
        report = Report(report.loaded, [], [])
    text = report._text(missing, lambda name: f"{name} {sources[name].shape}")
    text += _section("of another shape or dtype", wrong, str)
    if report.missing_keys or report.unexpected_keys:
        text += (
            "\n(hub.rename changes names; strict=False keeps the model's values of missing names and ignores "
            "unexpected ones)"
        )
    if wrong:
        text += "\n(a rule {'NAME': None} of hub.rename drops a weight, for one of the model's own)"
    return text


#: Last parts of names in treepie's layers, and PyTorch's for them.
_PYTORCH = {"beta": "bias", "embedding": "weight", "gamma": "weight", "scale": "weight"}


def _likely(name: str, leaf: Tensor, unused: Sequence[str], sources: Mapping[str, Tensor]) -> str:
    """Return ": did you mean NAME?" with the unused name of that size that is most like it; "" if none is."""
    fitting = [n for n in unused if sources[n].shape in (leaf.shape, leaf.shape[::-1])]
    module, dot, last = name.rpartition(".")
    theirs = f"{module}{dot}{_PYTORCH.get(last, last)}"
    near = difflib.get_close_matches(theirs, fitting, 1, 0.3) or difflib.get_close_matches(theirs, unused, 1)
    return f": did you mean {near[0]!r}?" if near else ""


def _section(title: str, names: Sequence[str], describe: Callable[[str], str]) -> str:
    if not names:
        return ""
    return f"\n  {len(names)} {title}:\n    " + _listed(names, "\n    ", describe)


def _listed(names: Sequence[str], separator: str, describe: Callable[[str], str] = str) -> str:
    """Return the first names, with the number of others."""
    shown = [describe(name) for name in names[:_MOST_NAMES]]
    more = len(names) - len(shown)
    return separator.join([*shown, f"and {more} more"] if more else shown)
