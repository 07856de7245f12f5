"""Policies by name: the file policies/<kind>/<name>.py holds the class `Policy` of that name."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Literal, overload

from dali.errors import UsageError
from dali.policies.assign import AssignPolicy
from dali.policies.cache import CachePolicy
from dali.policies.pool import PoolPolicy
from dali.policies.prefetch import PrefetchPolicy

Kind = Literal["assign", "prefetch", "cache", "pool"]
DEFAULT: dict[Kind, str] = {"assign": "two_lane", "prefetch": "ridge", "cache": "fading", "pool": "fading"}


def names(kind: Kind) -> list[str]:
    """The known policies of a kind."""
    return sorted(module.name for module in iter_modules(import_module(f"dali.policies.{kind}").__path__))


@overload
def create(kind: Literal["assign"], name: str, **options: Any) -> AssignPolicy: ...
@overload
def create(kind: Literal["prefetch"], name: str, **options: Any) -> PrefetchPolicy: ...
@overload
def create(kind: Literal["cache"], name: str, **options: Any) -> CachePolicy: ...
@overload
def create(kind: Literal["pool"], name: str, **options: Any) -> PoolPolicy: ...
def create(kind: Kind, name: str, **options: Any) -> Any:
    """A new policy of that name; `options` go to its constructor. UsageError: no policy has the name."""
    if name not in names(kind):
        raise UsageError(f"There is no {kind} policy {name!r}.", f"Use one of {', '.join(names(kind))}.")
    return import_module(f"dali.policies.{kind}.{name}").Policy(**options)
