"""The ways in which a model could run here: the one that `dali run` takes, and those that other flags ask for.

Where an accelerator cannot hold all experts, policies differ by what becomes of a miss: one that a token is routed to, and that
is not there. Each is told by the functions that decide in a live run (dali.policies). What comes to the same is told once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from dali.doctor.here import Here
from dali.doctor.plan import DISK, RAM, Device, Free, Plan, is_taken, make_plan
from dali.doctor.sizes import ModelSizes
from dali.doctor.speed import Prediction, predict
from dali.errors import DaliError
from dali.hardware.cost import reading
from dali.hardware.profile import Profile
from dali.options import ACCELERATOR, LoadOptions
from dali.policies.registry import DEFAULT

MISSES = {
    DEFAULT["assign"]: "misses by the faster way",
    "cpu_on_miss": "misses on the CPU",
    "gpu": "misses copied",
}
ALONE: dict[str, Any] = dict.fromkeys(ACCELERATOR) | {"device": "cpu", "lossy": False}
SAME = 1e-9  # share by which times that are one differ, as they are added up in another order


class Way(NamedTuple):
    """A way to run the model, and how fast it is. `policy`: what decides over an accelerator, "" where nothing is to be decided;
    `added`, `dropped`: options that ask for it, beside those given, and those of them that it is without; none can where both are
    empty and it is not `taken`."""

    name: str
    plan: Plan
    prediction: Prediction
    policy: str = ""
    taken: bool = False
    added: Mapping[str, Any] = {}
    dropped: Sequence[str] = ()


def ways_of(sizes: ModelSizes, options: LoadOptions, here: Here, device: Device | None) -> list[Way]:
    """All of them, the one that is taken first. DaliError: loading would refuse, in its words."""
    plan = make_plan(sizes, options, here.free, here.compiled, device)
    found = [_way(sizes, here.profile, plan)]
    for change, other, profile in _others(sizes, plan, here, device):
        way = _way(sizes, profile, other)._replace(**_asked(change, options))
        if device is None:  # told by its place, as the first one is
            way = way._replace(policy="")
        elif other.device is None:
            way = way._replace(name=f"{_name(other, device)} alone")
        elif any(_same(way, one) for one in found):
            continue
        found.append(way)
    if not is_taken(sizes, plan):
        found[0] = found[0]._replace(added={"assign": DEFAULT["assign"]})
        found.sort(key=lambda way: way.plan.device is not None)
    found[0] = found[0]._replace(taken=True, added={}, dropped=())
    return [found[0], *_other_reads(sizes, found[0], here), *found[1:]]


def plan_of(sizes: ModelSizes, options: LoadOptions, free: Free, here: Here, device: Device | None) -> Plan:
    """The plan that is taken. DaliError: there is none."""
    plan = make_plan(sizes, options, free, here.compiled, device)
    return plan if is_taken(sizes, plan) else make_plan(sizes, _changed(options, ALONE), free, here.compiled)


def _changed(options: LoadOptions, change: Mapping[str, Any]) -> LoadOptions:
    return replace(options, **change)


def _way(sizes: ModelSizes, profile: Profile, plan: Plan) -> Way:
    return Way(_name(plan), plan, predict(sizes, profile, plan), _policy(sizes, plan))


def _asked(change: Mapping[str, Any], options: LoadOptions) -> dict[str, Any]:
    """A change of options, as a way has it."""
    added = {name: value for name, value in change.items() if value and value != getattr(options, name)}
    dropped = [name for name, value in change.items() if not value and getattr(options, name) is not value]
    return {"added": added, "dropped": dropped}


def _name(plan: Plan, beside: Device | None = None) -> str:
    """`beside`: the device that is not used, whose profile tells the CPU's speed, too, where it is simulated."""
    if plan.device is not None:
        first = "experts on disk, in RAM" if plan.where == DISK else "experts in RAM"
        return f"{first} and on {plan.device.name}"
    cpu = f"{beside.profile.name}'s CPU" if beside is not None and beside.simulated else "the CPU"
    return f"{'all in RAM' if plan.where == RAM else 'experts on disk'}, on {cpu}"


def _policy(sizes: ModelSizes, plan: Plan) -> str:
    """What decides over an accelerator, for people."""
    options, assign = plan.options, plan.options.assign or DEFAULT["assign"]
    if plan.device is None:
        return ""
    if options.policy is not None:
        return f"by {options.policy}"
    if options.n_cpu_moe is not None:
        return f"{options.n_cpu_moe} of {sizes.moe_layers} layers on the CPU"
    if assign == "cpu" or not plan.resident:
        return "experts on the CPU"
    if assign not in MISSES:
        return f"by {assign}"
    return MISSES[assign] if plan.resident < plan.all_slots else ""


def _others(
    sizes: ModelSizes, plan: Plan, here: Here, device: Device | None
) -> Iterator[tuple[dict[str, Any], Plan, Profile]]:
    """Changes of the options that `plan` is made by, each with what comes of it."""
    options, profile = plan.options, here.profile
    for change, on in [*_splits(sizes, plan, here, device), *_places(plan, here, device)]:
        try:
            other = make_plan(sizes, _changed(options, change), here.free, here.compiled, on)
        except DaliError:  # no way, then
            continue
        if device is not None and device.simulated:
            profile = device.profile
        if device is not None or is_taken(sizes, other):
            yield change, other, profile


def _splits(
    sizes: ModelSizes, plan: Plan, here: Here, device: Device | None
) -> Iterator[tuple[dict[str, Any], Device | None]]:
    """Changes of the policy, dali's own first."""
    if device is None:
        return
    options, none = plan.options, {"policy": None, "lossy": False, "assign": None, "n_cpu_moe": None}
    said = options.policy, options.n_cpu_moe, options.assign or DEFAULT["assign"]
    if said != (None, None, DEFAULT["assign"]):
        yield none, device
        plan = make_plan(sizes, _changed(options, none), here.free, here.compiled, device)
    if not 0 < plan.resident < plan.all_slots:
        return
    for assign, ahead in (
        ("cpu_on_miss", {"prefetch": "none"}),
        ("gpu", {}),
    ):  # the CPU has misses that nobody fetches ahead
        if (None, None, assign) != said:
            yield {**none, "assign": assign, **ahead}, device
    layers = sizes.moe_layers - plan.resident // sizes.experts
    if layers not in (sizes.moe_layers, options.n_cpu_moe):
        yield {**none, "n_cpu_moe": layers, "prefetch": None, "cache": None}, device


def _places(plan: Plan, here: Here, device: Device | None) -> Iterator[tuple[dict[str, Any], Device | None]]:
    """The CPU alone, where an accelerator is asked for; else a GPU that is there."""
    if device is not None:
        yield ALONE, None
    elif here.other is not None and plan.where == RAM:
        yield {"device": "cuda", "prefetch": None, "assign": None}, here.other


def _other_reads(sizes: ModelSizes, taken: Way, here: Here) -> list[Way]:
    """Experts read from this machine's disk the slower way, through the page cache or past it, where both were measured."""
    plan, plain = taken.plan, here.profile.reads_plainly
    if not reads(plan) or here.profile.plain_share is None:
        return []
    free = here.free._replace(reads=reading(here.profile, not plain))
    try:
        other = make_plan(sizes, plan.options, free, here.compiled, plan.device)
    except DaliError:
        return []
    name = "the same by reads past the page cache" if plain else "the same by plain reading"
    return [Way(name, other, predict(sizes, here.profile, other))]


def reads(plan: Plan) -> bool:
    """Whether experts are read from this machine's disk while a step computes, and by its times."""
    real = plan.device is None or not plan.device.simulated
    return real and plan.where == DISK and plan.slots + plan.resident < plan.all_slots


def _same(way: Way, other: Way) -> bool:
    if way.plan.device is None or other.plan.device is None:
        return False
    if not way.policy and not other.policy:  # there is nothing to decide
        return True
    first, second = way.prediction, other.prediction
    pairs = (first.decode, second.decode), (first.prompt, second.prompt)
    return all(math.isclose(one.expected, other.expected, rel_tol=SAME) for one, other in pairs)
