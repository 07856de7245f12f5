"""Systems that do not ship with dali: from a file, or from an installed package.

A file, and whatever an entry point of the group GROUP names, holds a constant `SYSTEM`, or a class `Policy` of one kind
(assignment, cache or prefetch), which takes that kind's place in dali's default. What they make is checked as it is made; what
they decide is checked by dali.policies.decisions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from types import ModuleType
from typing import Any

from dali.errors import DaliError
from dali.policies import Policies, create, plugins
from dali.policies.cache import CachePolicy
from dali.policies.decisions import Decisions, blame, ours, place, shown, wrong
from dali.policies.plugins import MEND, PluginError, first_line
from dali.policies.pool import PoolPolicy
from dali.policies.prefetch import PREDICTORS, PrefetchPolicy
from dali.policies.registry import DEFAULT
from dali.policies.signals import Signals
from dali.systems._system import Create, System

GROUP = "dali.systems"


def split(name: str) -> tuple[str, str]:
    """("base", "variant") of "base:variant", where the base may be a path."""
    found = re.fullmatch(r"(.+\.py)(?::([^:/\\]*))?", name)
    if found:
        return found[1], found[2] or ""
    base, _, variant = name.partition(":")
    return base, variant


def installed() -> list[str]:
    """The systems that other installed packages bring; none of them is imported for it."""
    return plugins.installed(GROUP)


def from_file(name: str) -> System:
    """The system in a Python file, read anew when the file has changed. DaliError: there is no such file, it raises, or it holds
    neither a system nor a policy."""
    return replace(_in_module(*plugins.from_file(name)), name=name)


@lru_cache(maxsize=64)
def _in_module(module: ModuleType, path: str) -> System:
    return _system_of(module, os.path.basename(path), path)


@lru_cache(maxsize=64)
def from_package(name: str) -> System:
    """The system that an installed package's entry point names. DaliError: as for a file."""
    found, file = plugins.from_package(GROUP, name)
    return replace(_system_of(found, name, file), name=name)


def _system_of(found: Any, title: str, file: str) -> System:
    """The system that a module, a class or a `SYSTEM` itself stands for."""
    if isinstance(found, ModuleType):
        what = getattr(found, "SYSTEM", None)
        found = getattr(found, "Policy", None) if what is None else what
        if found is None:
            raise PluginError(
                f"The policy file {shown(file)}, line 1, holds neither a SYSTEM nor a class Policy.", MEND
            )
    if isinstance(found, System):
        variants = {name: _checked(make) for name, make in found.variants.items()}
        return replace(found, create=_checked(found.create), variants=variants)
    if isinstance(found, type):
        return _over_default(found, title, file)
    raise PluginError(
        f"The policy file {shown(file)}, line 1, holds {found!r}, which is neither a System nor a class.",
        MEND,
    )


def _over_default(policy: type, title: str, file: str) -> System:
    """Dali's default with the class's kind of policy replaced."""
    kind = _kind(policy)
    if PoolPolicy in policy.__mro__:
        raise PluginError(
            f"The class {policy.__name__} in {shown(file)}, line {first_line(policy)}, is a policy of who stays in RAM over a "
            "disk, which replays take and runs do not.",
            "Give it to `dali simulate --ram SIZE --policy`.",
        )
    if kind is None:
        raise PluginError(
            f"The class {policy.__name__} in {shown(file)}, line {first_line(policy)}, is no CachePolicy, no PrefetchPolicy, "
            "and has no method assign.",
            MEND,
        )

    def policies(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
        sizes = {"layers": layers, "experts": experts, "capacity": capacity, "seed": seed}
        try:
            own = policy(**sizes) if kind == "cache" else policy()
        except Exception as error:
            blame(kind, policy.__init__, error, "as it is made")  # type: ignore[misc]
        return Policies(
            own if kind == "assign" else create("assign", DEFAULT["assign"]),
            own if kind == "prefetch" else create("prefetch", DEFAULT["prefetch"]),
            own if kind == "cache" else create("cache", DEFAULT["cache"], **sizes),
        )

    asks = set(getattr(policy, "signals", ())) | ({"gate_inputs"} if kind != "prefetch" else set())
    return System(
        name=title,
        title=f"dali's default with the {kind} policy of {title}",
        create=_checked(policies),
        source=title,
        signals=frozenset(asks),
        guarded=True,
    )


def _kind(policy: type) -> Any:
    if issubclass(policy, CachePolicy):
        return "cache"
    if issubclass(policy, PrefetchPolicy):
        return "prefetch"
    return "assign" if callable(getattr(policy, "assign", None)) else None


def _checked(make: Create) -> Create:
    """`make`, and a look at what it made. DaliError: it raises, or made no policies or such as cannot start."""

    def policies(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
        when = f"for {layers} layers of {experts} experts, {capacity} of them resident"
        try:
            made = make(layers, experts, top_k, capacity, seed)
        except Exception as error:
            blame("system's", make, error, when)
        if not isinstance(made, Policies):
            raise DaliError(
                f"The system at {place(make)} makes {made!r}, which is no Policies ({when}).", MEND
            )
        for kind, fault in (
            ("assign", _assign_fault(made)),
            ("prefetch", _prefetch_fault(made)),
            ("cache", _cache_fault(made)),
        ):
            if fault:
                raise wrong(kind, _at_fault(made, kind, make), fault, when)
        decisions = Decisions(made, layers, experts)
        first = sum(len(decisions.initial(layer)) for layer in range(layers))
        if first > layers * capacity:
            fault = f"starts with {first} residents, where {layers * capacity} fit"
            raise wrong("cache", _at_fault(made, "cache", make), fault, when)
        return made if made.begin is None else replace(made, begin=_checked_begin(made.begin))

    return policies


def _at_fault(made: Policies, kind: str, make: Create) -> Any:
    """What to name for a fault of one kind: the policy, unless it is dali's own, which was then made wrongly."""
    method = {"assign": "assign", "prefetch": "plan", "cache": "initial"}[kind]
    found = getattr(getattr(made, kind), method, None)
    return make if found is None or ours(found) else found


def _assign_fault(made: Policies) -> str | None:
    if callable(getattr(made.assign, "assign", None)):
        return None
    return f"is {made.assign!r}, which has no method assign"


def _prefetch_fault(made: Policies) -> str | None:
    policy: Any = made.prefetch
    if not isinstance(policy, PrefetchPolicy):
        return f"is {policy!r}, which is no PrefetchPolicy"
    if policy.predictor is not None and policy.predictor not in PREDICTORS:
        return f"wants the predictor {policy.predictor!r}, of {', '.join(PREDICTORS)}"
    for name in ("distance", "depth"):
        value = getattr(policy, name, None)
        if type(value) is not int or value < 1:
            return f"has the {name} {value!r}, which is no number from 1"
    return None


def _cache_fault(made: Policies) -> str | None:
    policy: Any = made.cache
    if not isinstance(policy, CachePolicy):
        return f"is {policy!r}, which is no CachePolicy"
    unknown = set(policy.signals) - set(Signals._fields)
    if unknown:
        return f"wants the signals {', '.join(sorted(map(str, unknown)))}, of {', '.join(Signals._fields)}"
    return None


def _checked_begin(begin: Callable[[Any], None]) -> Callable[[Any], None]:
    def begun(step: Any) -> None:
        try:
            begin(step)
        except Exception as error:
            blame("system's", begin, error, "as a step begins")

    return begun
