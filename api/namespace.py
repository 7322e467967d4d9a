"""The public names of a package: those that its `__init__` imports `as` themselves."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any


def public_names(namespace: Mapping[str, Any], *modules: ModuleType) -> list[str]:
    """Return the names without a leading underscore; of modules only those that are given.

    Importing a submodule binds its name in the package too: modules are private unless they are named.
    """
    return sorted(
        name
        for name, value in namespace.items()
        if not name.startswith("_") and (not isinstance(value, ModuleType) or value in modules)
    )
