"""The public names of a package: those that its `__init__` imports `as` themselves."""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from .errors import no_attribute


def public_names(namespace: Mapping[str, Any], *modules: ModuleType) -> list[str]:
    """Return the names without a leading underscore; of modules only those that are given.

    Importing a submodule binds its name in the package too: modules are private unless they are named.
    """
    return sorted(
        name
        for name, value in namespace.items()
        if not name.startswith("_") and (not isinstance(value, ModuleType) or value in modules)
    )


#: Names of other libraries in lower case without underscores, and those here.
_OTHERS = {
    "array": "tensor",
    "bce": "loss.binary_cross_entropy",
    "bcewithlogitsloss": "loss.binary_cross_entropy",
    "binarycrossentropy": "loss.binary_cross_entropy",
    "callbacks": "callback",
    "categoricalcrossentropy": "loss.cross_entropy",
    "cat": "concatenate",
    "concat": "concatenate",
    "crossentropyloss": "loss.cross_entropy_sparse",
    "dataloader": "Data.prepare",
    "dataset": "Data.prepare",
    "dense": "layer.linear",
    "dot": "matmul",
    "fit": "Trainer",
    "functional": "fn",
    "initializers": "init",
    "layers": "layer",
    "losses": "loss",
    "lrscheduler": "optim.schedule",
    "manualseed": "rng.key",
    "metrics": "metric",
    "mm": "matmul",
    "model": "layer.sequential",
    "module": "layer.Layer",
    "mseloss": "loss.mse",
    "nn": "layer",
    "optimizers": "optim",
    "random": "rng",
    "seed": "rng.key",
    "sequential": "layer.sequential",
    "setseed": "rng.key",
    "sparsecategoricalcrossentropy": "loss.cross_entropy_sparse",
}


def suggest_names(
    package: ModuleType, modules: Mapping[str, ModuleType], optional: Sequence[str] = ()
) -> None:
    """Make a missing name of a package or of its modules an error that says which one a user may mean.

    modules: name in the package -> module.
    optional: names of the package's modules that are imported where they are first used, since they need
        packages that may not be installed.
    """
    for name, module in modules.items():
        vars(module)["__getattr__"] = functools.partial(_missing, package, modules, name)
    vars(package)["__getattr__"] = functools.partial(_optional, package, modules, tuple(optional))


def _optional(
    package: ModuleType, modules: Mapping[str, ModuleType], optional: Sequence[str], name: str
) -> Any:
    """Return an optional module, or raise AttributeError for a missing name of the package."""
    if name in optional:
        return importlib.import_module(f"{package.__name__}.{name}")
    return _missing(package, modules, "", name)


def _missing(package: ModuleType, modules: Mapping[str, ModuleType], module: str, name: str) -> Any:
    """Raise AttributeError for a missing name. module: its module's name, "" for the package."""
    owner = f"{package.__name__}.{module}" if module else package.__name__
    hint = "" if name.startswith("_") else _suggestion(package, modules, module, name)
    raise no_attribute(f"module {owner!r} has no attribute {name!r}{hint}")


def _suggestion(package: ModuleType, modules: Mapping[str, ModuleType], module: str, name: str) -> str:
    own = {_plain(n): _joined(module, n) for n in dir(modules[module] if module else package)}
    others: dict[str, str] = {}
    for m in [""] + [m for m in modules if m != module]:
        for n in dir(modules[m] if m else package):
            text = _joined(m, n)
            known = others.setdefault(_plain(n), text)
            if m and m != "math" and known != text and " or " not in known:
                others[_plain(n)] = f"{known} or tp.{text}"
    plain = _plain(name)
    exact = own.get(plain) or _OTHERS.get(plain) or others.get(plain)
    return f", did you mean tp.{exact}?" if exact else _near(plain, own, others)


def _near(plain: str, *names: Mapping[str, str]) -> str:
    """Return the suggestion of the names that are most like another one, of the first mapping with any."""
    for known in names:
        near: Sequence[str] = difflib.get_close_matches(plain, known, 1, 0.7)
        near = near or [n for n in known if len(plain) > 2 and n.startswith(plain)]
        if near:
            return f", did you mean tp.{known[near[0]]}?"
    return ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "")


def _joined(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name
