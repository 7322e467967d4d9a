"""The public names of a package: those that its `__init__` imports `as` themselves."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import FunctionType, ModuleType
from typing import Any

from treepie.autodiff.program.pure import is_pure

from .errors import explain_calls, nearest, no_attribute


def public_names(namespace: Mapping[str, Any], *modules: ModuleType) -> list[str]:
    """Return the names without a leading underscore; of modules only those that are given.

    Importing a submodule binds its name in the package too: modules are private unless they are named.
    """
    return sorted(
        name
        for name, value in namespace.items()
        if not name.startswith("_") and (not isinstance(value, ModuleType) or value in modules)
    )


#: Dtypes that tensors do not have, and what to use.
_HALVES = ("float16", "half")
_HALF = ", expected tp.float32, or tp.bfloat16 as the precision of a Trainer"

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
    "loadstatedict": "hub.assign",
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
    if name in _HALVES:
        return _HALF
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
        near = nearest(plain, known, 0.7)
        if near is None and len(plain) > 2:
            near = next((n for n in known if n.startswith(plain)), None)
        if near is not None:
            return f", did you mean tp.{known[near]}?"
    return ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "")


def _joined(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def explain_names(package: ModuleType, modules: Mapping[str, ModuleType], quick: Iterable[type]) -> None:
    """Make calls of public functions and classes with wrong arguments say how they are called.

    modules: name in the package -> module.  quick: classes of which steps create objects; their calls and
        methods stay as they are, and so do functions that explain their calls already, such as ops.
    """
    for prefix, module in {"": package, **modules}.items():
        for name in dir(module):
            value = vars(module).get(name)  # None for a module that is imported where it is first used
            if isinstance(value, type) and value.__module__.startswith("treepie."):
                if value not in quick and not issubclass(value, Exception):
                    _explain_class(value)
            elif _unexplained(value) and value.__module__.startswith("treepie."):
                _explain_function(module, name, _joined(prefix, name))


def _unexplained(value: Any) -> bool:
    return isinstance(value, FunctionType) and not getattr(value, "explained", False)


def _explain_function(module: ModuleType, name: str, public_name: str) -> None:
    """Explain calls of a function: in the module that defines it too, where pickle looks for it."""
    function = vars(module)[name]
    call = vars(sys.modules[function.__module__]).get(name)
    if getattr(call, "__wrapped__", None) is not function:  # else it has another public name
        call = explain_calls(function, public_name)
        if is_pure(function):
            call.pure = True  # type: ignore[attr-defined]
    for owner in (module, sys.modules[function.__module__]):
        if vars(owner).get(name) is function:
            setattr(owner, name, call)


def _explain_class(cls: type) -> None:
    """Explain calls of a class and of its public methods, inherited ones too."""
    for owner in [c for c in cls.__mro__ if c.__module__.startswith("treepie.")]:
        for name, method in list(vars(owner).items()):
            static = isinstance(method, staticmethod)
            function = method.__func__ if static else method
            if _unexplained(function) and (name == "__init__" or not name.startswith("_")):
                call = explain_calls(function)
                setattr(owner, name, staticmethod(call) if static else call)


#: Attributes and methods of other libraries' tensors, and what does the same here.
_TENSORS = {
    "backward": "tp.grad(f)(params) or tp.value_and_grad(f)(params), with f a function of the parameters",
    "clone": "the tensor itself, since tensors are immutable",
    "contiguous": "the tensor itself, since tensors are contiguous",
    "copy": "the tensor itself, since tensors are immutable",
    "cpu": "the tensor itself, since tensors are on the CPU",
    "cuda": "the tensor itself, since tensors are on the CPU",
    "detach": "tp.stop_gradient(x)",
    "device": "nothing: tensors are on the CPU",
    "dim": "x.ndim",
    "double": "x.astype(tp.float64)",
    "float": "x.astype(tp.float32)",
    "grad": "tp.grad(f)(params), which returns the gradients of a function f of the parameters",
    "int": "x.astype(tp.int32)",
    "long": "x.astype(tp.int64)",
    "masked_fill": "tp.where(mask, value, x)",
    "numel": "x.size",
    "permute": "x.transpose(axes)",
    "requires_grad": "tp.grad(f)(params), which takes the gradient of a function f of the parameters",
    "requires_grad_": "tp.grad(f)(params), which takes the gradient of a function f of the parameters",
    "t": "x.T",
    "to": "x.astype(dtype); tensors are on the CPU",
    "type": "x.dtype, or x.astype(dtype)",
    "unsqueeze": "tp.expand_dims(x, axis)",
    "view": "x.reshape(shape)",
}


class Elsewhere:
    """A name that a class lacks: looking it up raises AttributeError, with what to use.

    Unlike `__getattr__`, it costs other lookups nothing.
    """

    def __init__(self, name: str, hint: str) -> None:
        self.name, self.hint = name, hint

    def __get__(self, instance: Any, owner: type) -> Any:
        """Raise AttributeError."""
        message = f"{owner.__name__!r} object has no attribute {self.name!r}"
        raise no_attribute(f"{message}, expected {self.hint}")


def suggest_attributes(tensor: type, package: ModuleType) -> None:
    """Make missing attributes of tensors errors that say what to use: those of `_TENSORS`, and ops."""
    ops = {
        n: f"tp.{n}(x)" for n, f in vars(package).items() if ".autodiff.ops." in getattr(f, "__module__", "")
    }
    hints = {name: hint for name, hint in {**ops, **_TENSORS}.items() if not hasattr(tensor, name)}
    for name, hint in hints.items():
        setattr(tensor, name, Elsewhere(name, hint))

    def names(self: Any) -> list[str]:
        """Return the names of attributes, without those that only raise an error."""
        return [name for name in object.__dir__(self) if name not in hints]

    tensor.__dir__ = names  # type: ignore[method-assign,assignment]
