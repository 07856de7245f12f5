"""MoE layers in Qwen3-30B-A3B's shape over a GPU, or over what stands in for one, and where a step's host time goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dali import systems
from dali.devices.cuda import Gpu, GpuSlots
from dali.hardware.cost import CostModel
from dali.loading.loaded import LoadedModel
from dali.offload.gpu import layers_maker
from dali.policies import Policies, create
from dali.policies.once.vram import MOST_SCRATCH
from dali.policies.registry import DEFAULT
from dali.runtime.executor import Executor
from dali.runtime.gpu import GpuExecutor
from dali.runtime.loans import Loans
from dali.runtime.residency import Residency
from dali.store.expert_pool import ExpertPool
from dali.telemetry import Telemetry
from qwen3_layers import EXPERTS, HIDDEN, LAYERS, TOP_K, Foresight, dense_model, qwen3_30b_a3b

PARTS = ("begin", "routing", "plan", "execute", "rest")


class TimedLayers:
    """The native layers, and the seconds that their calls took: `cpu` is what execute() spent on the CPU's experts. `plans` says
    of each step how many experts ran on the CPU, on the GPU where they lay, there after a copy; and how many copies were for
    later."""

    def __init__(self, layers: Any) -> None:
        self._layers = layers
        self.seconds = dict.fromkeys(("begin", "routing", "execute", "cpu"), 0.0)
        self.plans: list[tuple[int, int, int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layers, name)

    def begin(self, *arguments: Any) -> None:
        self._timed("begin", *arguments)

    def routing(self, *arguments: Any) -> Any:
        return self._timed("routing", *arguments)

    def execute(self, on_cpu: list[int], launches: list[Any], fetches: list[Any], out: int) -> float:
        cpu = float(self._timed("execute", on_cpu, launches, fetches, out))
        there, fetched = (sum(len(one[0]) for one in launches if one[2] is kind) for kind in (False, True))
        self.plans.append((len(on_cpu), there, fetched, len(fetches)))
        self.seconds["cpu"] += cpu
        self.seconds["execute"] -= cpu
        return cpu

    def step(self, *arguments: Any) -> Any:
        return self._whole(self._layers.step, *arguments)

    def finish(self, *arguments: Any) -> Any:
        return self._whole(self._layers.finish, *arguments)

    def _whole(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """A call that plans, too. What comes before the routing has arrived counts as `routing`: queueing, and waiting for it."""
        started = time.perf_counter()
        outcome = call(*arguments)
        total = time.perf_counter() - started
        on_cpu, resident, prefetched, fetched, *_, ahead, seconds, plan, cpu, _ = outcome
        self.plans.append((on_cpu, resident + prefetched, fetched, ahead))
        self.seconds["routing"] += total - seconds
        self.seconds["execute"] += seconds - plan - cpu
        self.seconds["cpu"] += cpu
        return outcome

    def _timed(self, name: str, *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return getattr(self._layers, name)(*arguments)
        finally:
            self.seconds[name] += time.perf_counter() - started


def slots_for(resident: float) -> tuple[int, int]:
    """(slots, residents a layer) where a share of each layer's experts is resident, as offload/build.py divides them."""
    capacity = int(EXPERTS * resident)
    return LAYERS * capacity + (0 if capacity == EXPERTS else MOST_SCRATCH), capacity


def policies_for(capacity: int, system: str | None = None) -> Policies:
    """The default policies, or a published system's."""
    if system is not None:
        return systems.get(system).create(LAYERS, EXPERTS, TOP_K, capacity)
    sizes = {"layers": LAYERS, "experts": EXPERTS, "capacity": capacity}
    return Policies(
        create("assign", DEFAULT["assign"]),
        create("prefetch", DEFAULT["prefetch"]),
        create("cache", DEFAULT["cache"], **sizes),
    )


def build_gpu(
    gpu: Gpu, pool: ExpertPool, resident: float, costs: CostModel, predictor: Any, system: str | None = None
) -> GpuExecutor:
    """The layers as offload/build.py puts them over a GPU."""
    loaded = LoadedModel("random", "", dense_model(qwen3_30b_a3b()), None, pool, Telemetry(), 0, TOP_K)
    nbytes, (slots, _) = loaded.layout.record_bytes, slots_for(resident)
    make = layers_maker(gpu, loaded)
    device = GpuSlots(gpu, lambda count: TimedLayers(make(count)), nbytes, slots * nbytes)
    executor = build_on(GpuExecutor, device, pool, resident, costs, predictor, system)
    assert isinstance(executor, GpuExecutor)
    return executor


def build_on(
    kind: type[Executor],
    device: Any,
    pool: ExpertPool,
    resident: float,
    costs: CostModel,
    predictor: Any,
    system: str | None = None,
    **more: Any,
) -> Executor:
    """An executor of this kind over a device."""
    slots, capacity = slots_for(resident)
    link = costs.costs.link, costs.costs.link_contended
    nbytes = max(layout.record_bytes for layout in pool.layouts)
    residency = Residency(device, Loans(device, pool), LAYERS, nbytes, slots, LAYERS * capacity, link)
    for layer in pool.records:
        device.pin(layer[0])
    telemetry = Telemetry(modelled=kind is Executor)
    policies = policies_for(capacity, system)
    if policies.prefetch.predictor is None:
        predictor = None
    guarded = system is None or systems.get(system).guarded
    return kind(device, pool, residency, policies, predictor, costs, telemetry, guarded=guarded, **more)


@dataclass
class HostTime:
    """Seconds of each layer step's host work, by part and in all; the CPU's experts and the prediction are not in it."""

    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    host: list[float] = field(default_factory=list)
    steps: list[float] = field(
        default_factory=list
    )  # all layers of a step, everything included, the queue run dry

    def median_us(self, part: str = "host") -> float:
        return 1e6 * statistics.median(self.host if part == "host" else self.parts[part])


@torch.inference_mode()
def run_steps(
    executor: GpuExecutor,
    foresight: Foresight | None,
    batch: int,
    drawn: Sequence[torch.Tensor],
    finish: Callable[[], None] = lambda: None,
    waiting: bool = False,
) -> HostTime:
    """Run whole steps of routing `drawn`; `finish` waits for the GPU. `waiting`: routing() waits for a GPU that works, which is
    not the host's work."""
    place = executor.device.gpu.place
    hidden = torch.randn(batch, HIDDEN).to(place, torch.bfloat16)
    weights = torch.full((batch, TOP_K), 1 / TOP_K, device=place)
    layers, telemetry = executor.device.layers, executor._telemetry
    found = HostTime()
    for ids in drawn:
        if foresight is not None:
            foresight.routing = ids.to(place)
        ids = ids.to(place)
        finish()
        begun = time.perf_counter()
        for layer in range(LAYERS):
            before, planned, predicted = (
                dict(layers.seconds),
                telemetry.plan_seconds,
                telemetry.predict_seconds,
            )
            started = time.perf_counter()
            executor.run(layer, hidden, ids[layer], weights)
            total = time.perf_counter() - started
            spent = {name: seconds - before[name] for name, seconds in layers.seconds.items()}
            cpu = spent.pop("cpu")
            if waiting:
                total -= spent["routing"]
                spent["routing"] = 0.0
            host = total - cpu - (telemetry.predict_seconds - predicted)
            spent["plan"] = telemetry.plan_seconds - planned
            spent["rest"] = host - sum(spent.values())
            found.host.append(host)
            for part, seconds in spent.items():
                found.parts[part].append(seconds)
        finish()
        found.steps.append(time.perf_counter() - begun)
    return found
