"""Whether an accelerator makes answers faster at all: as a profile tells before it is used, and as steps tell while it is."""

from __future__ import annotations

from collections.abc import Callable

from dali.errors import parameter
from dali.hardware.cost import CostModel
from dali.hardware.profile import Profile
from dali.loading.loaded import LoadedModel
from dali.loading.room import DEVICE_WORK, MOST_STEP, accelerates, measured_here
from dali.offload.vram import whole_context
from dali.options import LoadOptions
from dali.policies.doubt import Doubt
from dali.policies.once import alone
from dali.policies.once.alone import Worth, loses
from dali.policies.once.vram import residents
from dali.runtime.decoding_steps import DecodingSteps
from dali.runtime.executor import Executor
from dali.runtime.residency import Residency
from dali.step.size import StateSize


def weigh(
    loaded: LoadedModel, costs: CostModel, slots: tuple[int, int], dense: tuple[int, int, int]
) -> Worth:
    """`slots`: residents of all layers, and what others pass through; `dense`: bytes, weights and kernels of the dense part."""
    layers, experts = loaded.pool.layers, loaded.pool.experts
    each = min(slots[0] // layers, experts), slots[1]
    nbytes, weights, kernels = (size // layers for size in dense)
    return alone.weigh(costs, layers, experts, loaded.top_k, each, (nbytes, weights, kernels))


def slots_of(loaded: LoadedModel, nbytes: int) -> tuple[int, int]:
    """Residents of all layers, and what others pass through, of so many bytes for experts."""
    layers, experts = loaded.pool.layers, loaded.pool.experts
    slots = min(nbytes // loaded.layout.record_bytes, layers * experts)
    resident = layers * residents(slots, layers, experts)
    return resident, slots - resident


def room_of(loaded: LoadedModel, size: StateSize, profile: Profile, options: LoadOptions) -> int:
    """Bytes that experts will have of the memory of an accelerator that is not open yet, by its profile, if one sequence of the
    whole context, whose state is of such a `size`, is kept there."""
    room = max(int(profile["gpu_memory"]) - loaded.dense_bytes, 0)
    if options.vram_bytes is not None:
        return min(options.vram_bytes, room)
    keeps = whole_context(size, loaded.ctx_size, MOST_STEP, options)
    return max(room - DEVICE_WORK - keeps.whole - keeps.moving, 0)


def decide(
    worth: Worth, loaded: LoadedModel, options: LoadOptions, profile: Profile, notify: Callable[[str], None]
) -> bool:
    """Whether the device that `options` name is used, as `room.accelerates` has it. `notify` is told of a loss, and the telemetry
    of both times."""
    loss, here = loses(*worth), measured_here(options, profile)
    used = accelerates(worth, options, profile, loaded.disk is not None)
    loaded.telemetry.worth = {
        "profile": profile.name,
        "accelerator_seconds": worth.beside,
        "cpu_seconds": worth.alone,
        "used": used,
    }
    if loss:
        of = "what was measured of this machine" if here else f"the profile {profile.name}"
        times = f"{1000 * worth.beside:.3g} ms with {options.device}, and {1000 * worth.alone:.3g} ms on the CPU alone"
        notify(f"By {of} a token is modelled to take {times}{_so(used, options)}.")
    return used


def _so(used: bool, options: LoadOptions) -> str:
    if not used:
        return (
            f", which does all. To use {options.device} all the same, say how: {parameter('assign')} two_lane"
        )
    if options.device_kind == "sim":
        return ". It is simulated all the same"
    return f". Leave {parameter('device')} out, or try both"


def doubt(
    executor: Executor,
    residency: Residency,
    loaded: LoadedModel,
    options: LoadOptions,
    notify: Callable[[str], None],
) -> None:
    """Let steps be left to the CPU where they are faster so, unless somebody said how experts are to be split, or all are anyway,
    as there are no slots. With experts on disk such steps would read those that the accelerator has."""
    slots = residency.resident_slots + residency.scratch_slots
    if options.splits or slots == 0 or loaded.disk is not None:
        return
    executor.steps = DecodingSteps(
        Doubt(),
        loaded.pool.layers,
        executor.expected,
        executor.dense_seconds,
        loaded.telemetry,
        executor.device.name,
        notify,
    )
