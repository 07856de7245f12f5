"""Putting a loaded model's experts under DALI's runtime: a device, its slots, the policies and their predictor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from dali import systems, units
from dali.devices import Device, OutOfDeviceMemoryError, SimDevice
from dali.devices.cuda import Gpu, GpuSlots
from dali.engine.budget import StateBudget
from dali.engine.engine import Engine
from dali.errors import UsageError, parameter
from dali.fused.model import DecodingModel
from dali.fused.release import release
from dali.hardware.cost import CostModel, ExpertSize
from dali.hooks import seam
from dali.hooks.shared import early_shared
from dali.loading.loaded import LoadedModel
from dali.offload.accelerated import AcceleratedExperts
from dali.offload.calibrate import load_predictor
from dali.offload.dense import dense_seconds, dense_size, predict_seconds
from dali.offload.gpu import check_native, gpu_model, move_dense, open_gpu, tell_pinned, unnamed_profile
from dali.offload.gpu_model import GpuModel
from dali.offload.lending import lend
from dali.offload.lossy import CpuExperts, LossyLayers, Scores, cpu_experts
from dali.offload.low_bits import reduce_bits
from dali.offload.simulated import open_simulated
from dali.offload.vram import experts_of, state_size
from dali.offload.worth import decide, doubt, room_of, slots_of, weigh
from dali.options import LoadOptions
from dali.policies import Policies
from dali.policies.once.prefill import prefill_chunk
from dali.policies.once.vram import residents
from dali.policies.prefetch import PrefetchPolicy
from dali.policies.whole_layers import WholeLayers
from dali.progress import Meter
from dali.runtime.executor import Executor
from dali.runtime.gpu import GpuExecutor
from dali.runtime.loans import Loans
from dali.runtime.look_ahead import LookAhead
from dali.runtime.prefetch import Predictor
from dali.runtime.residency import Residency

MOST_TOKENS = 8192  # of one step, for which times are tabulated


def check_device(options: LoadOptions) -> None:
    """DaliError, saying what is wrong with it, for a device that this machine has not."""
    if options.device_kind == "cuda":
        check_native(options)
        Gpu(options.device)
        if options.lossy:
            raise UsageError(
                f"{parameter('lossy')} needs a simulated accelerator so far, and the device is {options.device}.",
                f"Leave it out, or give {parameter('device')} sim:PROFILE.",
            )


def accelerate(
    loaded: LoadedModel,
    engine: Engine,
    options: LoadOptions,
    meter: Meter,
    notify: Callable[[str], None],
    device: Device | None = None,
    room: int | None = None,
    decoder: DecodingModel | None = None,
    taking_turns_with: AcceleratedExperts | None = None,
) -> AcceleratedExperts | None:
    """The runtime for a model that runs on the CPU so far, on `engine`, which predictors are calibrated with; None where the CPU
    alone is faster, as far as is known, and nothing was said of how experts are to be split.

    `device` stands in for the one `options` names; `room`: bytes of host memory that a second set of experts may take, None for
    what is free; `decoder`: the CPU's way to decode the model in one call, by which a GPU's kernels go; `taking_turns_with`: what
    has the GPU already, and its slots: the one whose turn comes then calls `resume`.
    """
    model = loaded.model
    costs, device, on_gpu, budget = _used(device, taking_turns_with, options, loaded, engine, decoder, notify)
    if device is None:
        return None
    routers = seam.routers(model, loaded.layout.shape.hidden)
    scores = None if routers is None else seam.scores(routers, model.config.get_text_config())
    residency, policies = _residency(
        loaded, device, lend(loaded, device, costs.profile), options, costs, notify
    )
    parts = options.lossy_parts()
    beside, fingerprint = _make_lossy(parts, loaded, costs, scores is not None, room, meter)
    _tell_budget(loaded, device, options, notify)
    predictor = _predictor(loaded, fingerprint, engine, policies.prefetch, residency, routers, meter, notify)
    system = _system(options, scores is not None, type(model).__name__, notify)
    if isinstance(device, GpuSlots) and on_gpu is None:  # only now: calibration ran on the CPU
        predictor = move_dense(loaded, device, predictor)
    executor = _executor(
        loaded, device, residency, policies, predictor, costs, routers, scores, system, on_gpu
    )
    doubt(executor, residency, loaded, options, notify)
    tell_pinned(device, notify)
    runner, lossy = _runner(executor, system, parts, beside, scores, loaded)
    return AcceleratedExperts(
        executor,
        [runner.layer(index) for index in range(loaded.pool.layers)],
        device.now,
        policies.begin,
        system is not None and "embeddings" in system.signals,
        min(_step_tokens(loaded, costs, residency), executor.most_tokens),
        isinstance(device, SimDevice),
        None if system is None else system.name,
        budget,
        lossy,
        on_gpu,
        predictor,
    )


def _beside(loaded: LoadedModel) -> list[Callable[[Tensor], None] | None]:
    """Of each MoE layer what starts its shared experts early. Experts that compute in a latent space are given something else
    than those beside them."""
    model = loaded.model
    direct = model.get_input_embeddings().weight.shape[-1] == loaded.layout.shape.hidden
    return [early_shared(model, name) if direct else None for name in seam.experts_modules(model)]


def _make_lossy(
    parts: systems.LossyParts | None,
    loaded: LoadedModel,
    costs: CostModel,
    scored: bool,
    room: int | None,
    meter: Meter,
) -> tuple[CpuExperts | None, str]:
    """What a system's lossy parts make of the experts: a second set of them, if it wants one, and the fingerprint of the model as
    it is then."""
    beside, fingerprint = None, loaded.fingerprint
    if parts is not None and parts.reroute is not None:
        beside = cpu_experts(parts, loaded, costs, scored, room, meter)
    if parts is not None and parts.bits is not None:  # after all that refuses, as it cannot be undone
        reduce_bits(loaded.layouts, loaded.pool.records, parts.bits, meter)
        fingerprint += f" {parts.bits} bits"  # predictors are calibrated on the experts as they are
    return beside, fingerprint


def _runner(
    executor: Executor,
    system: systems.System | None,
    parts: systems.LossyParts | None,
    beside: CpuExperts | None,
    scores: Scores | None,
    loaded: LoadedModel,
) -> tuple[Executor | LossyLayers, dict[str, Any]]:
    """What runs the layers, with lossy parts where some are on, and what there is to say of those."""
    if system is None or parts is None:
        return executor, {}
    lossy: dict[str, Any] = {"parts": list(system.lossy)}
    if beside is None:
        return executor, lossy
    return LossyLayers(executor, parts, beside, scores, loaded.telemetry, lossy), lossy


def _used(
    given: Device | None,
    other: AcceleratedExperts | None,
    options: LoadOptions,
    loaded: LoadedModel,
    engine: Engine,
    decoder: DecodingModel | None,
    notify: Callable[[str], None],
) -> tuple[CostModel, Device | None, GpuModel | None, StateBudget | None]:
    """What plans go by, and the device as `_open` has it; none where the CPU alone is faster."""
    gpu = _gpu(options, given, other)
    costs = _costs(loaded, options, gpu, notify)
    device, on_gpu, budget = _there(given, other, gpu, options, loaded, engine, costs)
    nbytes = room_of(loaded, state_size(engine), costs.profile, options) if device is None else device.budget
    worth = weigh(loaded, costs, slots_of(loaded, nbytes), dense_size(loaded.model))
    if not decide(worth, loaded, options, costs.profile, notify):
        return costs, None, None, None
    if device is None:
        assert gpu is not None
        device, on_gpu, budget = _open(gpu, engine, decoder, options, loaded, costs, notify)
    return costs, device, on_gpu, budget


def _gpu(options: LoadOptions, given: Device | None, other: AcceleratedExperts | None) -> Gpu | None:
    """The GPU that `options` name, or that is given or has been opened already."""
    device = given or (None if other is None else other.executor.device)
    if isinstance(device, GpuSlots):
        return device.gpu
    return Gpu(options.device) if device is None and options.device_kind == "cuda" else None


def _there(
    given: Device | None,
    other: AcceleratedExperts | None,
    gpu: Gpu | None,
    options: LoadOptions,
    loaded: LoadedModel,
    engine: Engine,
    costs: CostModel,
) -> tuple[Device | None, GpuModel | None, StateBudget | None]:
    """As `_open`, of what is given, what `other` has opened, or what is simulated; None for a GPU that nobody has opened yet."""
    if given is not None:
        return given, None, None
    if other is not None and isinstance(other.executor.device, GpuSlots):
        on_gpu = other.decoder if isinstance(other.decoder, GpuModel) else None
        return other.executor.device, on_gpu, other.budget
    if gpu is not None:
        return None, None, None
    simulated, budget = open_simulated(options, loaded, engine, costs.profile, experts_of(loaded, costs))
    return simulated, None, budget


def _open(
    gpu: Gpu,
    engine: Engine,
    decoder: DecodingModel | None,
    options: LoadOptions,
    loaded: LoadedModel,
    costs: CostModel,
    notify: Callable[[str], None],
) -> tuple[Device, GpuModel | None, StateBudget | None]:
    """The slots of a GPU, the whole model on it where it has kernels for all of it, and its memory for what sequences keep."""
    on_gpu = gpu_model(gpu, loaded, decoder)
    if on_gpu is None:
        release(loaded.model)
        notify(
            f"{loaded.name} has parts that dali's GPU kernels lack: torch computes all but its experts, and more slowly."
        )
    size = state_size(engine)  # only now: torch's attention keeps more of a token than latents
    slots, budget = open_gpu(options, loaded, size, gpu, on_gpu, experts_of(loaded, costs))
    if on_gpu is not None:
        on_gpu.put()
    return slots, on_gpu, budget


def _system(
    options: LoadOptions, scored: bool, model: str, notify: Callable[[str], None]
) -> systems.System | None:
    """The system that `options` name, if any; `scored`: whether the model's routers give scores."""
    if options.policy is None:
        return None
    system = systems.get(options.policy)
    if "scores" in system.signals and not scored:
        notify(f"{system.title} decides without router scores: the routers of {model} give none.")
    return system


def _executor(
    loaded: LoadedModel,
    device: Device,
    residency: Residency,
    policies: Policies,
    predictor: Predictor | None,
    costs: CostModel,
    routers: Sequence[nn.Module] | None,
    scores: Scores | None,
    system: systems.System | None,
    on_gpu: GpuModel | None,
) -> Executor:
    model, layers = loaded.model, loaded.pool.layers
    for layer in loaded.pool.records:
        device.pin(layer[0])  # its whole arena, once
    kind: type[Executor] = GpuExecutor if isinstance(device, GpuSlots) else Executor
    made = kind(
        device,
        loaded.pool,
        residency,
        policies,
        predictor,
        costs,
        loaded.telemetry,
        dense_seconds(model, costs, layers),
        predict_seconds(routers, costs, policies.prefetch.depth),
        [] if on_gpu else _beside(loaded),
        scores=scores,
        guarded=system is None or system.guarded,
    )
    if on_gpu is not None and isinstance(made, GpuExecutor):
        on_gpu.follow(made, predictor)
    return made


def _costs(
    loaded: LoadedModel, options: LoadOptions, gpu: Gpu | None, notify: Callable[[str], None]
) -> CostModel:
    """What plans go by: the profile that `options` name, else the one for a GPU that they do not name."""
    profile = options.planning_profile()
    if profile is None:
        assert gpu is not None
        profile = unnamed_profile(gpu, notify)
    layout, shape = loaded.layout, loaded.layout.shape
    size = ExpertSize(
        shape.hidden, shape.intermediate, len(shape.matrices), {layout.format_name: layout.weight_bytes}
    )
    return CostModel(profile, size, layout.format_name, MOST_TOKENS)


def _step_tokens(loaded: LoadedModel, costs: CostModel, residency: Residency) -> int:
    return prefill_chunk(
        costs.costs,
        loaded.pool.experts,
        loaded.top_k,
        residency.resident_slots // loaded.pool.layers,
        residency.scratch_slots,
    )


def _tell_budget(
    loaded: LoadedModel, device: Device, options: LoadOptions, notify: Callable[[str], None]
) -> None:
    """Say where the device's memory is less than was asked for, or holds no expert at all."""
    asked, record_bytes = options.vram_bytes, loaded.layout.record_bytes
    if asked is not None and asked > device.budget:
        notify(
            f"{device.name} has {units.size(device.budget)} left for experts, not the {units.size(asked)} asked for."
        )
    if device.budget < record_bytes and asked != 0:
        notify(
            f"The {units.size(device.budget)} of {device.name} hold no expert of {units.enough(record_bytes)}: all run "
            "on the CPU."
        )


def _predictor(
    loaded: LoadedModel,
    fingerprint: str,
    engine: Engine,
    prefetch: PrefetchPolicy,
    residency: Residency,
    routers: Sequence[nn.Module] | None,
    meter: Meter,
    notify: Callable[[str], None],
) -> Predictor | None:
    """What foresees the routing that `prefetch` plans with; None where it needs none, or nothing could be fetched."""
    if prefetch.predictor is None or not residency.scratch_slots:
        return None
    if routers is None:
        notify(
            f"Prefetching is off: the routers of {type(loaded.model).__name__} cannot be called on their own."
        )
        return None
    predictors = [
        load_predictor(
            prefetch.predictor,
            far,
            engine,
            loaded.tokenizer,
            routers,
            loaded.top_k,
            loaded.name,
            fingerprint,
            meter,
        )
        for far in range(prefetch.distance, min(prefetch.distance + prefetch.depth, loaded.pool.layers))
    ]
    return predictors[0] if len(predictors) == 1 else LookAhead(predictors)


def _residency(
    loaded: LoadedModel,
    device: Device,
    loans: Loans,
    options: LoadOptions,
    costs: CostModel,
    notify: Callable[[str], None],
) -> tuple[Residency, Policies]:
    """As many slots as the budget holds, fewer where the device cannot give them, and the policies for so many."""
    pool, size = loaded.pool, loaded.layout.record_bytes
    layers, experts = pool.layers, pool.experts
    slots = min(device.budget // size, layers * experts)
    link = costs.costs.link, costs.costs.link_contended
    while True:
        capacity = residents(slots, layers, experts)
        policies = options.policies(layers, experts, loaded.top_k, capacity)
        resident_slots = sum(len(policies.cache.initial(layer)) for layer in range(layers))
        if isinstance(policies.cache, WholeLayers):
            policies.cache.check(slots, size, device.name)
            slots = resident_slots
        try:
            residency = Residency(device, loans, layers, size, slots, resident_slots, link)
        except OutOfDeviceMemoryError as error:
            if not slots:
                raise
            fewer = slots * 3 // 4
            notify(f"{error.problem} Using {fewer} expert slots instead of {slots}.")
            slots = fewer
        else:
            return residency, policies
