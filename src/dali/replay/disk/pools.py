"""Pools by name: a policy that says who stays in RAM, and whether experts are read ahead."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

from dali.errors import UsageError, parameter
from dali.hardware.cost import DiskCosts
from dali.policies import create
from dali.policies import names as policies
from dali.policies.places import Places
from dali.policies.read_ahead import ReadAhead
from dali.policies.registry import DEFAULT
from dali.replay.disk import plugged
from dali.replay.disk.tier import PAGE, Tier
from dali.replay.shapes import Shape
from dali.replay.traces.trace import Trace
from dali.units import enough, parse_size, size

LEAST = 2  # places: one expert computes while the next one is read


def names() -> list[str]:
    """`default` is dali's default policy, reading ahead; the others read on demand alone."""
    return ["default", *policies("pool")]


def check(name: str) -> str:
    """The name of a pool: one of `names`, an installed package's, or a file's that ends in .py. UsageError: none has it.
    DaliError: it is a plug-in that cannot be used."""
    if name in names():
        return name
    if not name.endswith(".py") and name not in plugged.installed():
        known = ", ".join([*names(), *plugged.installed()])
        raise UsageError(
            f"There is no policy {name!r} for a pool in RAM.",
            f"Use some of {known}, or a file that ends in .py.",
        )
    places = Places(plugged.create(name, layers=1, experts=2, slots=1, read_seconds=[1.0]))
    places.observe(0, [1, 0])
    for expert in (0, 1):  # the second one takes the first one's place, so that all is asked once
        places.take((0, expert), ())
    return name


def about(name: str) -> str:
    """What a pool is, a sentence."""
    if name == "default":
        return f"{DEFAULT['pool']}, reading ahead what the next layers' experts are predicted to be."
    if name not in names():
        return f"{'From a file' if name.endswith('.py') else 'From an installed package'}."
    said = import_module(f"dali.policies.pool.{name}").__doc__ or ""
    return " ".join(said.partition("\n\n")[0].split())


def make(name: str, trace: Trace, places: int, disk: DiskCosts, expert_bytes: int) -> Tier:
    """A fresh pool of so many places."""
    read = disk.read(aligned(expert_bytes))
    sizes: dict[str, Any] = {
        "layers": trace.layers,
        "experts": trace.experts,
        "slots": places,
        "read_seconds": [read] * trace.layers,
    }
    if name in names():
        policy = create("pool", DEFAULT["pool"] if name == "default" else name, **sizes)
    else:
        policy = plugged.create(name, **sizes)
    if name != "default":
        return Tier(policy, disk, aligned(expert_bytes))
    return Tier(policy, disk, aligned(expert_bytes), ReadAhead())


def places_of(text: str, trace: Trace, shape: Shape) -> int:
    """Places for "8GiB" or "25%" of all experts; at most as many as there are. UsageError: it is neither, or too little."""
    total, record = trace.layers * trace.experts, aligned(shape.expert_bytes)
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else None
        if share is not None and not 0 <= share < math.inf:
            raise ValueError
        places = parse_size(text) // record if share is None else int(share * total + 0.5)
    except (ValueError, UsageError):
        raise UsageError(
            f"{parameter('ram')} cannot be {text!r}.",
            "Give sizes, or shares of all experts: 8GiB,16GiB or 25%,50%.",
        ) from None
    if places < LEAST:
        raise UsageError(
            f"{parameter('ram')} {text} holds {places} of the experts of {trace.name}, {size(record)} each; "
            f"a pool needs {LEAST}.",
            f"Give at least {enough(LEAST * record)}.",
        )
    return min(places, total)


def aligned(nbytes: int) -> int:
    """Bytes that a read of so many takes."""
    return -(-nbytes // PAGE) * PAGE
