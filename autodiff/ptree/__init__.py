"""Trees: nested dicts, lists, tuples and registered dataclasses of tensors."""

from .tree import (
    Tree as Tree,
    count_parameters as count_parameters,
    flatten as flatten,
    flatten_with_paths as flatten_with_paths,
    fold as fold,
    leaves as leaves,
    map as map,
    register_dataclass as register_dataclass,
    zeros_like as zeros_like,
)

__all__ = [name for name in globals() if not name.startswith("_") and name not in ("Tree", "tree")]


def __dir__() -> list[str]:
    return __all__
