"""The type variables of pipelines, `Data[T_co]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

U = TypeVar("U")
if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    # `Data` alone is `Data[Any]`. At run time Pythons before 3.13 have no defaults, and need none.
    T_co = TypeVarWithDefault("T_co", covariant=True, default=Any)
else:
    T_co = TypeVar("T_co", covariant=True)
