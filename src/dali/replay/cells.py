"""The cells of a comparison: policy x trace x profile x shape x batch x slots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from dali import systems
from dali.errors import UsageError, parameter
from dali.hardware import profile as profiles
from dali.hardware.cost import disk_costs
from dali.replay import eviction
from dali.replay.disk import pools
from dali.replay.shapes import shape_of
from dali.replay.steps import Forward, forwards
from dali.replay.traces.trace import Trace, read


@dataclass(frozen=True)
class Cell:
    """One replay. `profile` is None for a cache alone, `tokens` None for all. With `ram` the policy is the pool's, and the system
    of an accelerator with slots dali's default."""

    trace: str
    batch: int
    cache_slots: str
    policy: str
    profile: str | None
    shape: str | None
    tokens: int | None
    seed: int
    ram: str | None = None  # of experts; None: all are in RAM


def plan(
    traces: Sequence[str],
    policies: Sequence[str],
    profile_names: Sequence[str],
    shapes: Sequence[str],
    batches: Sequence[int],
    cache_slots: Sequence[str],
    tokens: int | None,
    seed: int,
    cache_only: bool = False,
    ram: Sequence[str] = (),
) -> list[Cell]:
    """The cells, in the report's order. UsageError, before anything is replayed: whatever cannot be meant."""
    timed = [(None, None)] if cache_only else list(product(profile_names, shapes))
    for policy in policies:
        if cache_only:
            eviction.check(policy)
        elif ram:
            pools.check(policy)
        else:
            systems.get(policy)
    for profile, _ in timed:
        if profile is not None:
            machine = profiles.load(profile)
            if ram:
                disk_costs(machine)
    cells = []
    for path in traces:
        trace = read_trace(path)
        for _, shape in timed:
            if shape is not None:
                for text in ram:
                    pools.places_of(text, trace, shape_of(trace, shape))
                shape_of(trace, shape)
        for batch in batches:
            forwards(trace, batch, tokens=1)
        for text in cache_slots:
            slots_of(text, trace)
        cells += [
            Cell(path, batch, text, policy, profile, shape, tokens, seed, memory)
            for (profile, shape), batch, text, memory, policy in product(
                timed, batches, cache_slots, ram or (None,), policies
            )
        ]
    return cells


def spelt_out(policies: Sequence[str], cache_only: bool = False, pool: bool = False) -> list[str]:
    """Policies, each once, "all" spelt out: dali's own; "lossless" is the same, as nothing lossy is ever replayed. `pool`: of
    those of a pool in RAM."""
    found: list[str] = []
    for name in policies:
        if name not in ("all", "lossless"):
            found.append(name)
        elif cache_only:
            found += eviction.POLICIES
        elif pool:
            found += pools.names()
        else:
            found += sorted(systems.names(), key=lambda name: name != "default")
    return list(dict.fromkeys(found))


def slots_of(text: str, trace: Trace) -> int:
    """Resident experts a layer for "25%" or "8". UsageError: it is neither, or more than there are."""
    try:
        exact = float(text[:-1]) / 100 * trace.experts if text.endswith("%") else int(text)
        if not 0 <= exact < math.inf:
            raise ValueError
    except ValueError:
        raise UsageError(
            f"{parameter('cache_slots')} cannot be {text!r}.",
            "Give shares or numbers of a layer's experts: 25%,50% or 8,16.",
        ) from None
    if exact > trace.experts:
        raise UsageError(
            f"{parameter('cache_slots')} {text} is more than the {trace.experts} experts a layer of {trace.name}.",
            f"Give at most {trace.experts}, or 100%.",
        )
    return math.floor(exact + 0.5)


@lru_cache(maxsize=8)
def read_trace(path: str) -> Trace:
    """`read`, remembered."""
    return read(path)


@lru_cache(maxsize=8)
def steps_of(path: str, batch: int, tokens: int | None) -> list[Forward]:
    """`forwards` of the trace in a file, remembered."""
    return forwards(read_trace(path), batch, tokens)
