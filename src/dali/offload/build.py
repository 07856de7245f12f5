"""Putting a loaded model's experts under DALI's runtime: a device, its slots, the policies and their predictor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dali import systems
from dali.devices import CudaDevice, Device, OutOfDeviceMemoryError, SimDevice
from dali.devices.dependencies import dependencies
from dali.engine.engine import Engine
from dali.errors import UsageError
from dali.fused.dense import PackedLinear
from dali.hardware import memory
from dali.hardware import profile as profiles
from dali.hardware.cost import CostModel, ExpertSize
from dali.hardware.profile import Profile
from dali.hooks import seam
from dali.hooks.shared import early_shared
from dali.loading.safetensors import LoadedModel
from dali.offload.calibrate import load_predictor
from dali.offload.lossy import CpuExperts, LossyLayers, cpu_experts
from dali.offload.low_bits import reduce_bits
from dali.policies import Policies, create
from dali.policies.assign import AssignPolicy, layerwise
from dali.policies.cache.whole_layers import WholeLayers
from dali.policies.prefill import prefill_chunk
from dali.policies.registry import DEFAULT
from dali.progress import Meter
from dali.runtime.executor import Executor
from dali.runtime.look_ahead import LookAhead
from dali.runtime.prefetch import Predictor
from dali.runtime.residency import Residency

MOST_SCRATCH = 16  # slots demanded and prefetched experts pass through; more of them hide nothing more
MOST_TOKENS = 8192  # of one step, for which times are tabulated
HEADROOM = 2**30  # accelerator bytes for keys, values and activations, where nothing says better


@dataclass(frozen=True)
class Offload:
    """How to use an accelerator. `device`: "cuda", "cuda:N", "sim:PROFILE"; `vram`: bytes for experts, None for what
    is left beside the dense weights; `profile`: name or file of the times to plan with, which a simulated device has of its own;
    `policy`: a whole system by name, in place of `assign`, `prefetch` and `cache`; `lossy`: with its lossy parts. `seed`: of the
    starting residents and of the simulator's schedule."""

    device: str
    vram: int | None = None
    profile: str | None = None
    assign: str = DEFAULT["assign"]
    prefetch: str = DEFAULT["prefetch"]
    cache: str = DEFAULT["cache"]
    n_cpu_moe: int | None = None
    policy: str | None = None
    lossy: bool = False
    seed: int = 0

    def assignment(self) -> AssignPolicy:
        """The assignment policy; `n_cpu_moe` belongs to layerwise alone, and names it."""
        if self.n_cpu_moe is not None and self.assign in ("two_lane", "layerwise"):
            return create("assign", "layerwise", cpu_layers=self.n_cpu_moe)
        if self.n_cpu_moe is not None:
            raise UsageError(
                f"--n-cpu-moe and --assign {self.assign} exclude each other.", "Leave one of them out."
            )
        return create("assign", self.assign)

    def policies(self, layers: int, experts: int, top_k: int, capacity: int) -> Policies:
        """Fresh policies for `capacity` residents a layer."""
        if self.policy is not None:
            return systems.get(self.policy).create(layers, experts, top_k, capacity, self.seed)
        cache = create("cache", self.cache, layers=layers, experts=experts, capacity=capacity, seed=self.seed)
        assign = self.assignment()
        if isinstance(
            assign, layerwise.Policy
        ):  # with whole layers there, no cache policy has anything to do
            cache = WholeLayers(layers, experts, assign.cpu_layers)
        return Policies(assign, create("prefetch", self.prefetch), cache)

    def lossy_parts(self) -> systems.LossyParts | None:
        """What is to be lossy; UsageError where there is nothing to choose from."""
        if not self.lossy:
            return None
        having = f"one of {', '.join(systems.names(lossy=True))}"
        if self.policy is None:
            raise UsageError(
                "--lossy turns on the lossy parts of a system, and none is named.", f"Give --policy {having}."
            )
        system = systems.get(self.policy)
        if system.parts is None:
            raise UsageError(f"{system.title} has no lossy parts.", f"Leave out --lossy, or choose {having}.")
        return system.parts


def check(options: Offload) -> None:
    """UsageError for an unknown device, profile or policy or an impossible budget, before anything is loaded."""
    kind, _, profile = options.device.partition(":")
    if kind not in ("cuda", "sim") or (kind == "sim" and not profile):
        raise UsageError(
            f"Unknown device {options.device!r}.",
            "Use cpu, cuda, cuda:N, or sim:PROFILE for a simulated accelerator.",
        )
    if kind == "cuda":
        CudaDevice(options.device, 0)  # says what is wrong with it
    planning_profile(options)
    options.policies(layers=1, experts=1, top_k=1, capacity=1)
    options.lossy_parts()


def planning_profile(options: Offload) -> Profile:
    kind, _, name = options.device.partition(":")
    chosen = options.profile or (name if kind == "sim" else None)
    if chosen is None:
        raise UsageError(
            f"{options.device} has no measured profile to plan with.",
            f"Give --profile with the nearest of {', '.join(profiles.known())}, or a file of your own.",
        )
    profile = profiles.load(chosen)
    if kind == "sim" and chosen != name:
        raise UsageError(
            f"--profile {chosen} is not the one of {options.device}, which it plans with.",
            f"Leave it out, or give --device sim:{chosen}.",
        )
    return profile


def open_device(options: Offload, profile: Profile, model: nn.Module) -> Device:
    """The device with its budget for experts: `vram`, at most what it has beside the dense weights, which move there."""
    if options.device.startswith("cuda"):
        model.to(options.device)
        return CudaDevice(options.device, options.vram, dependencies=dependencies())
    dense_bytes = sum(parameter.nbytes for parameter in model.parameters())
    room = max(int(profile["gpu_memory"]) - dense_bytes, 0)
    if options.vram is not None and options.vram > room:
        raise UsageError(
            f"--vram asks for {memory.size(options.vram)}; {profile.name} has {memory.size(room)} beside dense weights.",
            f"Give --vram {room // 2**20}MiB or less, or choose another profile.",
        )
    budget = max(room - HEADROOM, 0) if options.vram is None else options.vram
    return SimDevice(budget, name=options.device, seed=options.seed, dependencies=dependencies())


def offload(
    loaded: LoadedModel,
    engine: Engine,
    options: Offload,
    meter: Meter,
    notify: Callable[[str], None],
    device: Device | None = None,
    room: int | None = None,
) -> Executor:
    """Replace the model's CPU layers by the runtime's. `device` stands in for the one `options` names; `room`: bytes of
    host memory that a second set of experts may take, None for what is free."""
    profile = planning_profile(options)
    model, layout, telemetry = loaded.model, loaded.layout, loaded.telemetry
    layers, experts = len(loaded.records), len(loaded.records[0])
    device = device or open_device(options, profile, model)
    if options.vram is not None and options.vram > device.budget:
        notify(
            f"{device.name} has {memory.size(device.budget)} left for experts, not the {memory.size(options.vram)} asked for."
        )
    shape = layout.shape
    size = ExpertSize(
        shape.hidden, shape.intermediate, len(shape.matrices), {layout.format_name: layout.weight_bytes}
    )
    costs = CostModel(profile, size, layout.format_name, MOST_TOKENS)
    system = None if options.policy is None else systems.get(options.policy)
    parts = options.lossy_parts()
    routers = seam.routers(model, shape.hidden)
    scores = None if routers is None else seam.scores(routers, model.config)
    residency, policies = _residency(loaded, device, options, costs, notify)
    beside: CpuExperts | None = None
    if parts is not None and parts.reroute is not None:
        beside = cpu_experts(parts, loaded, costs, scores is not None, room, meter)
    if parts is not None and parts.bits is not None:  # after all that refuses, as it cannot be undone
        reduce_bits(loaded.layouts, loaded.records, parts.bits, meter)
        loaded.fingerprint += f" {parts.bits} bits"  # predictors are calibrated on the experts as they are
    if device.budget < layout.record_bytes and options.vram != 0:
        notify(
            f"The {memory.size(device.budget)} of {device.name} hold no expert of {memory.enough(layout.record_bytes)}: all run "
            "on the CPU."
        )
    prefetch = policies.prefetch
    predictor: Predictor | None = None
    if prefetch.predictor is not None and residency.scratch_slots:
        if routers is None:
            notify(
                f"Prefetching is off: the routers of {type(model).__name__} cannot be called on their own."
            )
        else:
            ahead = range(prefetch.distance, min(prefetch.distance + prefetch.depth, layers))
            names = loaded.name, loaded.fingerprint
            found = [
                load_predictor(prefetch.predictor, far, engine, loaded.tokenizer, routers, *names, meter)
                for far in ahead
            ]
            predictor = found[0] if len(found) == 1 else LookAhead(found)
    if system is not None and "scores" in system.signals and scores is None:
        notify(
            f"{system.title} decides without router scores: the routers of {type(model).__name__} give none."
        )
    modules = seam.experts_modules(model)
    telemetry.layers.clear()
    telemetry.modelled = isinstance(device, SimDevice)
    engine.clock, engine.begin = device.now, policies.begin
    engine.embeddings = system is not None and "embeddings" in system.signals
    for layer in loaded.records:
        device.pin(layer[0])  # its whole arena, once
    executor = Executor(
        device,
        loaded.layouts,
        loaded.records,
        residency,
        policies,
        predictor,
        costs,
        telemetry,
        dense_seconds(model, costs, layers),
        predict_seconds(routers, costs, prefetch.depth),
        [early_shared(model, name) for name in modules],
        scores=scores,
        guarded=system is None or system.guarded,
    )
    runner: Executor | LossyLayers = executor
    if system is not None:
        loaded.system = system.name
        if parts is not None:
            loaded.lossy["parts"] = list(system.lossy)
            if beside is not None:
                runner = LossyLayers(executor, parts, beside, scores, telemetry, loaded.lossy)
    for index, module in enumerate(modules.values()):
        module.__dict__["dali_layer"] = runner.layer(index)
    engine.scheduler.step_tokens = prefill_chunk(
        costs.costs,
        experts,
        model.config.num_experts_per_tok,
        residency.resident_slots // layers,
        residency.scratch_slots,
    )
    return executor


def _residency(
    loaded: LoadedModel, device: Device, options: Offload, costs: CostModel, notify: Callable[[str], None]
) -> tuple[Residency, Policies]:
    """As many slots as the budget holds, fewer where the device cannot give them, and the policies for so many."""
    records, size = loaded.records, loaded.layout.record_bytes
    layers, experts = len(records), len(records[0])
    slots = min(device.budget // size, layers * experts)
    link = costs.costs.link, costs.costs.link_contended
    while True:
        capacity = split(slots, layers, experts)
        policies = options.policies(layers, experts, loaded.model.config.num_experts_per_tok, capacity)
        resident_slots = sum(len(policies.cache.initial(layer)) for layer in range(layers))
        if isinstance(policies.cache, WholeLayers):
            policies.cache.check(slots, size, device.name)
            slots = resident_slots
        try:
            residency = Residency(
                device,
                lambda layer, expert: records[layer][expert],
                layers,
                size,
                slots,
                resident_slots,
                link,
            )
        except OutOfDeviceMemoryError as error:
            fewer = slots * 3 // 4
            notify(f"{error.problem} Using {fewer} expert slots instead of {slots}.")
            slots = fewer
        else:
            return residency, policies


def split(slots: int, layers: int, experts: int) -> int:
    """Residents a layer, of `slots` in all: as many as there can be once a few slots are left as scratch."""
    if slots >= layers * experts:
        return experts
    return (slots - min(MOST_SCRATCH, max(slots // 4, 1), slots)) // layers


def dense_size(model: Any) -> tuple[int, int, int]:
    """Bytes and number of all dense weights but the embeddings, unpacked as an accelerator has them, and one kernel a
    leaf module."""
    embeddings = model.get_input_embeddings()
    nbytes = count = kernels = 0
    for module in model.modules():
        if isinstance(module, PackedLinear):
            size = module.in_features * module.out_features
            nbytes, count, kernels = nbytes + size * embeddings.weight.itemsize, count + size, kernels + 1
        elif module is not embeddings:  # a tied output layer still counts
            weights = [p for p in module._parameters.values() if p is not None]
            nbytes += sum(p.nbytes for p in weights)
            count += sum(p.numel() for p in weights)
            kernels += bool(weights) and not module._modules
    return nbytes, count, kernels


def dense_seconds(model: Any, costs: CostModel, layers: int) -> Callable[[int], float]:
    """tokens -> modelled seconds of a layer's dense part: all of it spread over the MoE layers."""
    nbytes, count, kernels = dense_size(model)

    @functools.cache
    def seconds(tokens: int) -> float:
        return costs.dense(nbytes // layers, count // layers, tokens, kernels // layers) + costs.sync

    return seconds


def predict_seconds(
    routers: Sequence[nn.Module] | None, costs: CostModel, depth: int = 1
) -> Callable[[int], float]:
    """tokens -> modelled seconds of predicting `depth` layers: each one kernel over a router's weights, which a ridge map equals
    in size."""
    weights = list(routers[0].parameters()) if routers else []
    nbytes, count = sum(p.nbytes for p in weights), sum(p.numel() for p in weights)
    return functools.cache(lambda tokens: depth * costs.dense(nbytes, count, tokens, kernels=1))
