"""Tiny random experts and routers under an executor, planned as if they were the experts of a real model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from random import Random
from typing import Any

import torch
from torch import Tensor

from dali.devices import Dependencies, Device, SimDevice
from dali.devices.dependencies import dependencies
from dali.hardware.cost import CostModel, ExpertSize
from dali.hardware.profile import known, load
from dali.hooks.moe_layer import MoELayer
from dali.kernels import dispatch as experts
from dali.kernels import reference
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape, ExpertWeights
from dali.kernels.formats import get_format
from dali.offload.fit import FITS
from dali.policies import Policies, create, names
from dali.runtime.executor import Executor
from dali.runtime.host import Kernel
from dali.runtime.loans import Loans
from dali.runtime.predict import GateShift, LinearMap
from dali.runtime.residency import Residency
from dali.store.expert_pool import ExpertPool
from dali.telemetry import Telemetry

HIDDEN, INTERMEDIATE, LAYERS, EXPERTS, TOP_K = 32, 32, 4, 8, 2
# Times as of Qwen3-30B-A3B's experts: at these workloads plans mix the CPU, residents and copies.
SIZE = ExpertSize(hidden=2048, intermediate=768, matrices=3, bytes={"w4": 2_654_208, "w8": 5_013_504})
MOST_TOKENS = 64
STEPS = range(6)  # a prompt, then decoding: past the workload cache's window of 4


@dataclass(frozen=True)
class Router:
    """A linear router: softmax over the logits, the top-k kept."""

    weights: Tensor  # [experts, hidden]

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = hidden @ self.weights.T
        values, ids = logits.softmax(-1).topk(TOP_K)
        return logits, values, ids


@dataclass(frozen=True, eq=False)
class Model:
    """`layers` MoE layers in a row, each added to its input."""

    layout: ExpertLayout
    records: list[list[Tensor]]  # [layer][expert]
    routers: list[Router]
    arithmetic: str | None

    def forward(
        self, layers: list[Callable[[Tensor, Tensor, Tensor], Tensor]], hidden: Tensor
    ) -> list[Tensor]:
        """The output of every layer, each [tokens, hidden]."""
        outputs = []
        for router, layer in zip(self.routers, layers, strict=True):
            _, weights, ids = router(hidden)
            outputs.append(layer(hidden, ids, weights))
            hidden = hidden + outputs[-1]
        return outputs

    @property
    def kernel(self) -> Kernel:
        if self.arithmetic is None:
            return experts.compute_experts
        return partial(reference.compute_experts, arithmetic=self.arithmetic)

    def on_cpu(self) -> list[MoELayer]:
        telemetry = Telemetry()
        pool = self.pool
        return [MoELayer(index, pool, telemetry, self.arithmetic) for index in range(pool.layers)]

    @property
    def pool(self) -> ExpertPool:
        return ExpertPool([self.layout] * len(self.records), self.records)


@lru_cache
def tiny_model(
    format: str = "w8", arithmetic: str | None = "exact", seed: int = 0, layers: int = LAYERS
) -> Model:
    generator = torch.Generator().manual_seed(seed)

    def random(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) / columns**0.5

    layout = ExpertLayout(ExpertShape(HIDDEN, INTERMEDIATE, Activation("silu")), get_format(format))
    records = []
    for _ in range(layers):
        records.append([torch.empty(layout.record_bytes, dtype=torch.uint8) for _ in range(EXPERTS)])
        for record in records[-1]:
            inner = (random(INTERMEDIATE, HIDDEN), random(INTERMEDIATE, HIDDEN))
            layout.pack(ExpertWeights(*inner, random(HIDDEN, INTERMEDIATE)), record)
    routers = [Router(random(EXPERTS, HIDDEN) * 3) for _ in range(layers)]
    return Model(layout, records, routers, arithmetic)


@lru_cache
def inputs(tokens: int, seed: int) -> Tensor:
    """Gate inputs of the first layer, [tokens, hidden]."""
    return torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


@lru_cache
def fitted(kind: str, model: Model, distance: int = 1) -> list[Tensor]:
    """A calibration of the predictor `kind` on random tokens."""
    fits = [FITS[kind]() for _ in range(len(model.routers) - distance)]
    seen: list[Tensor] = []

    def watched(layer: MoELayer) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def call(hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            seen.append(hidden)
            return layer(hidden, ids, weights)

        return call

    model.forward([watched(layer) for layer in model.on_cpu()], inputs(64, 99))
    for layer, fit in enumerate(fits):
        later = seen[layer + distance]
        fit.add(seen[layer], later, model.routers[layer + distance](later)[0])
    return [fit.solve() for fit in fits]


def predictor(kind: str | None, model: Model, distance: int = 1) -> GateShift | LinearMap | None:
    if kind is None:
        return None
    if kind == "ridge":
        return LinearMap(fitted(kind, model, distance), distance, TOP_K)
    return GateShift(model.routers, distance, None if kind == "next_gate" else fitted(kind, model, distance))


@dataclass(frozen=True)
class Setting:
    """What one executor is made of, and the batch it runs. `slots`: expert slots on the device; `scratch`: how many of them no
    resident may hold, None as many as the engine would leave; `count`: experts a prefetch, None what the link holds."""

    assign: str = "two_lane"
    prefetch: str = "residual"
    cache: str = "workload"
    slots: int = LAYERS * EXPERTS // 2
    batch: int = 1
    profile: str = "paper"
    scratch: int | None = None
    distance: int = 1
    count: int | None = None
    seed: int = 0  # of the starting residents and the schedule
    arithmetic: tuple[str, str | None] = ("w8", "exact")


BUDGETS = (0, 1, LAYERS * EXPERTS // 10, LAYERS * EXPERTS // 2, LAYERS * EXPERTS)  # slots
BATCHES = (1, 2, 8)
# The reference's exact arithmetic, and that of the compiled kernels where there are any.
ARITHMETICS = tuple((format, arithmetic) for format in ("w8", "w4") for arithmetic in ("exact", None))


def matrix() -> Iterator[Setting]:
    """Every policy x budget x batch, each with a schedule seed, a profile and an arithmetic of its own."""
    kinds = (names("assign"), names("prefetch"), names("cache"), BUDGETS, BATCHES)
    rng = Random(0)
    for seed, choice in enumerate(product(*kinds)):
        yield Setting(*choice, profile=rng.choice(known()), seed=seed, arithmetic=rng.choice(ARITHMETICS))


def stratified() -> Iterator[Setting]:
    """A sixth of the matrix: two settings of each assignment, cache and budget; prefetches and batches take turns."""
    cells: dict[tuple[str, str, int], list[Setting]] = {}
    for setting in matrix():
        cells.setdefault((setting.assign, setting.cache, setting.slots), []).append(setting)
    for turn, cell in enumerate(cells.values()):
        yield cell[5 * turn % len(cell)]
        yield cell[(5 * turn + 7) % len(cell)]


def residents(setting: Setting, layers: int) -> int:
    """Residents a layer, of the slots there are."""
    if setting.scratch is not None:
        return (setting.slots - setting.scratch) // layers
    return EXPERTS if setting.slots >= layers * EXPERTS else (setting.slots - (setting.slots > 0)) // layers


def tiny_executor(
    setting: Setting,
    model: Model,
    device: Device | None = None,
    kernel: Callable[..., None] | None = None,
    dense: float = 50e-6,
    **policies: Any,
) -> Executor:
    """`device`: else a simulated one, its dependencies compiled if the seed is odd. `dense`: seconds between two layers'
    experts. `policies`: objects in place of the setting's, by kind."""
    layers, nbytes = len(model.records), model.layout.record_bytes
    derivation = dependencies() if setting.seed % 2 else Dependencies()
    device = device or SimDevice(setting.slots * nbytes, seed=setting.seed, dependencies=derivation)
    costs = CostModel(load(setting.profile), SIZE, model.layout.format.name, MOST_TOKENS)
    cache = policies.get("cache") or create(
        "cache",
        setting.cache,
        layers=layers,
        experts=EXPERTS,
        capacity=residents(setting, layers),
        seed=setting.seed,
    )
    residency = Residency(
        device,
        Loans(device, model.pool),
        layers,
        nbytes,
        setting.slots,
        layers * cache.capacity,
        (costs.costs.link, costs.costs.link_contended),
    )
    options = {"cpu_layers": 2} if setting.assign == "layerwise" else {}
    assign = policies.get("assign") or create("assign", setting.assign, **options)
    prefetch = policies.get("prefetch") or create(
        "prefetch", setting.prefetch, distance=setting.distance, count=setting.count
    )
    return Executor(
        device,
        model.pool,
        residency,
        Policies(assign, prefetch, cache),
        predictor(prefetch.predictor, model, setting.distance),
        costs,
        Telemetry(modelled=True),
        dense_seconds=lambda tokens: dense,
        predict_seconds=lambda tokens: 1e-6,
        kernel=kernel or model.kernel,
    )


def step_inputs(batch: int, step: int) -> Tensor:
    """A prompt of three tokens a sequence first, then one token each."""
    return inputs(batch if step else 3 * batch, step)


@torch.inference_mode()
def run(executor: Executor, model: Model, batch: int, steps: range = STEPS) -> list[list[Tensor]]:
    """Every layer's output in every step."""
    layers = [executor.layer(index) for index in range(len(model.records))]
    return [model.forward(layers, step_inputs(batch, step)) for step in steps]


@lru_cache
@torch.inference_mode()
def expected(model: Model, batch: int, steps: range = STEPS) -> list[list[Tensor]]:
    """The same on the CPU alone."""
    return [model.forward(model.on_cpu(), step_inputs(batch, step)) for step in steps]


def identical(ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> bool:
    """Whether all outputs are the same, bit for bit."""
    return len(ours) == len(theirs) and all(
        torch.equal(one, other)
        for mine, reference in zip(ours, theirs, strict=True)
        for one, other in zip(mine, reference, strict=True)
    )


def check_slots(residency: Residency, slots: int, capacity: int) -> None:
    """Every slot is free, a resident's or scratch, and only one of these; layers keep their number of residents."""
    held = [
        holding.slot for layer in (*residency._residents, *residency._scratch) for holding in layer.values()
    ]
    assert sorted(slot.key for slot in (*held, *residency._free)) == sorted(
        slot.key for slot in (residency._memory.parts if residency._memory else ())
    )
    assert len(held) + residency.free_slots() == slots
    for layer in range(LAYERS):
        assert len(residency.residents(layer)) == capacity
        assert residency.residents(layer).isdisjoint(residency.scratch(layer))
