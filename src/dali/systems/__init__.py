"""Systems: published offloading systems and baselines, each as the policies that make it up, side by side in one engine.

A system is one file `systems/<name>.py` with a constant `SYSTEM`, its underscores read as hyphens; what several of them share is
in files whose names begin with an underscore. Their policies are of the kinds of dali.policies and decide live and in replay.
Where a signal it names is missing, a system decides on what is left, as its file says, and whoever shows its figures says "signal
missing".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol

from dali.errors import UsageError
from dali.policies import Policies
from dali.systems._lossy import DROPPED, KEPT, LATER, LOW, LossyParts, Rerouted, Routed

__all__ = ["DROPPED", "KEPT", "LATER", "LOW", "LossyParts", "Rerouted", "Routed", "System", "get", "names"]


class Create(Protocol):
    """Fresh policies for a model of `layers` MoE layers with `experts` routed experts, `top_k` of them a token, on an
    accelerator that holds `capacity` experts a layer."""

    def __call__(self, layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies: ...


@dataclass(frozen=True)
class System:
    """One system.

    `source`: paper and code. `differs`: where its released code and its paper part, which of both this follows, and what had
    to be changed to fit here. `lossy`: its parts that change the model's output, off unless asked for, none of a lossless system;
    `parts`: what they do. `signals`: of "weights", "scores", "gate_inputs", "embeddings", those it decides by. `variants`: other
    settings its paper or code names, as "system:variant"; `variant_parts`: their lossy parts, where they differ. `guarded`:
    whether dali's guards may rest its prefetches and swaps.
    """

    name: str
    title: str
    create: Create
    source: str
    differs: str = ""
    lossy: tuple[str, ...] = ()
    parts: LossyParts | None = None
    signals: frozenset[str] = frozenset()
    variants: Mapping[str, Create] = field(default_factory=dict)
    variant_parts: Mapping[str, LossyParts] = field(default_factory=dict)
    guarded: bool = False


def names(lossy: bool = False, variants: bool = False) -> list[str]:
    """The known systems, which all leave the model's output as it is while their lossy parts are off; with `lossy` only those
    that have any, with `variants` each one's behind it."""
    found = [name for name in sorted(_modules()) if not lossy or get(name).lossy]
    if not variants:
        return found
    return [name for base in found for name in (base, *(f"{base}:{other}" for other in get(base).variants))]


def get(name: str) -> System:
    """The system of that name, "system:variant" included. UsageError: there is none."""
    base, _, variant = name.partition(":")
    modules = _modules()
    if base not in modules:
        raise UsageError(f"There is no system {name!r}.", f"Use one of {', '.join(names(variants=True))}.")
    system: System = import_module(f"{__name__}.{modules[base]}").SYSTEM
    if not variant:
        return system
    if variant not in system.variants:
        known = ", ".join(f"{base}:{other}" for other in system.variants)
        raise UsageError(
            f"There is no system {name!r}.", f"Use {base}{', or one of ' if known else ''}{known}."
        )
    return replace(
        system,
        name=name,
        title=f"{system.title}, {variant}",
        create=system.variants[variant],
        parts=system.variant_parts.get(variant, system.parts),
    )


def _modules() -> dict[str, str]:
    found = (module.name for module in iter_modules(__path__))
    return {name.replace("_", "-"): name for name in found if not name.startswith("_")}
