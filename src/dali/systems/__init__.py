"""Systems: published offloading systems and baselines, each as the policies that make it up, side by side in one engine.

A system is one file `systems/<name>.py` with a constant `SYSTEM`, its underscores read as hyphens; what several of them share is
in files whose names begin with an underscore. Their policies are of the kinds of dali.policies and decide live and in replay.
Where a signal it names is missing, a system decides on what is left, as its file says, and whoever shows its figures says "signal
missing". Files of a user's own and installed packages can bring more of them (systems/_plugins.py).
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules

from dali.errors import DaliError, UsageError
from dali.systems import _plugins
from dali.systems._lossy import DROPPED, KEPT, LATER, LOW, LossyParts, Rerouted, Routed
from dali.systems._plugins import installed
from dali.systems._system import Create, System

__all__ = [
    "DROPPED",
    "KEPT",
    "LATER",
    "LOW",
    "Create",
    "LossyParts",
    "Rerouted",
    "Routed",
    "System",
    "get",
    "installed",
    "names",
]


def names(lossy: bool = False, variants: bool = False) -> list[str]:
    """The systems that ship with dali, which all leave the model's output as it is while their lossy parts are off; with `lossy`
    only those that have any, with `variants` each one's behind it. `installed` names those of other packages."""
    found = [name for name in sorted(_modules()) if not lossy or get(name).lossy]
    return [name for base in found for name in _with_variants(base)] if variants else found


def get(name: str) -> System:
    """The system of that name, "system:variant" included: one of dali's own, an installed package's, or that of a file, whose
    name ends in .py. UsageError: there is none. DaliError: it is a plug-in that cannot be used."""
    base, variant = _plugins.split(name)
    modules = _modules()
    system: System
    if base.endswith(".py"):
        system = _plugins.from_file(base)
    elif base in modules:
        system = import_module(f"{__name__}.{modules[base]}").SYSTEM
    elif base in installed():
        system = _plugins.from_package(base)
    else:
        known = [*names(variants=True), *(name for base in installed() for name in _with_variants(base))]
        raise UsageError(
            f"There is no system {name!r}.", f"Use one of {', '.join(known)}, or a file that ends in .py."
        )
    if not variant:
        return system
    if variant not in system.variants:
        others = ", ".join(f"{base}:{other}" for other in system.variants)
        raise UsageError(
            f"There is no system {name!r}.", f"Use {base}{', or one of ' if others else ''}{others}."
        )
    return replace(
        system,
        name=name,
        title=f"{system.title}, {variant}",
        create=system.variants[variant],
        parts=system.variant_parts.get(variant, system.parts),
    )


def _with_variants(base: str) -> list[str]:
    """A system and its variants; one that cannot be loaded is named all the same, and says what is wrong when it is asked for."""
    try:
        return [base, *(f"{base}:{other}" for other in get(base).variants)]
    except DaliError:
        return [base]


def _modules() -> dict[str, str]:
    found = (module.name for module in iter_modules(__path__))
    return {name.replace("_", "-"): name for name in found if not name.startswith("_")}
