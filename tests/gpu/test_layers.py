"""MoE layers over a GPU and the CPU, on a stand-in for the driver that runs things as late and as oddly as it may."""

from __future__ import annotations

import random

import pytest
import torch
from fake import COMPILER, FakeDriver, address, shimmed

from dali.compiled import library as compiled
from dali.kernels import native
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape, ExpertWeights
from dali.kernels.formats import get_format
from dali.kernels.gpu.experts import PASSES, experts_macros
from dali.kernels.native.experts import ExpertRecords, native_layout
from dali.kernels.native.library import DTYPES

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="there is no g++"),
    pytest.mark.skipif(
        not native.enabled() or native.variant() == "portable", reason="needs fused multiply-adds"
    ),
]
EXPERTS, TOP_K, HIDDEN, LAYERS, SLOTS, MOST_TOKENS = 8, 3, 64, 3, 9, 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture(scope="module")
def driver(folder):
    return FakeDriver(folder)


class Model:
    """Layers of random experts, on the GPU that `driver` stands in for."""

    def __init__(self, driver: FakeDriver, folder, dtype=torch.bfloat16, slots: int = SLOTS) -> None:
        self.dtype = dtype
        self.alive: list[torch.Tensor] = []  # what is queued may read and write it
        self.layout = ExpertLayout(ExpertShape(HIDDEN, 96, Activation("silu")), get_format("w4"))
        generator = torch.Generator().manual_seed(0)
        self.records = torch.zeros(LAYERS, EXPERTS, self.layout.record_bytes, dtype=torch.uint8)
        for record in self.records.view(-1, self.layout.record_bytes):
            parts = [
                torch.randn(*size, generator=generator) * 0.3 for size in self.layout.shape.matrices.values()
            ]
            self.layout.pack(ExpertWeights(*parts), record)
        self.pools = [ExpertRecords(self.layout, list(layer)) for layer in self.records]
        cubins = [shimmed.build_macros(experts_macros(self.layout, passes), folder) for passes in PASSES]
        self.device = compiled.GpuDevice(str(driver.path), 0)
        few, many = (compiled.GpuModule(self.device, str(cubin).encode()) for cubin in cubins)
        weights = DTYPES[torch.float32]
        sizes = (
            EXPERTS,
            TOP_K,
            HIDDEN,
            MOST_TOKENS,
            16,
            DTYPES[dtype],
            weights,
            self.layout.record_bytes,
            slots,
        )
        self.layers = compiled.GpuLayers(self.device, few, *sizes)
        for pool in self.pools:
            self.layers.add(native_layout(self.layout), pool._addresses, few, many)


def routed(generator: torch.Generator, tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    x = torch.randn(tokens, HIDDEN, generator=generator).to(dtype)
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:TOP_K] for _ in range(tokens)])
    return x, ids, torch.rand(tokens, TOP_K, generator=generator)


def step(model: Model, layer: int, x, ids, weights, plan) -> torch.Tensor:
    """One layer's step; plan(active) -> what execute() takes."""
    out = torch.full_like(x, float("nan"))
    ahead = torch.arange(5)
    model.alive += [x, ids, weights, ahead, out]
    model.layers.begin(layer, len(x), *map(address, (x, ids, weights, ahead)), len(ahead), 0)
    seen, foreseen = model.layers.routing(ids.numel(), len(ahead))
    assert seen == ids.flatten().tolist()
    assert foreseen == ahead.tolist()
    model.layers.execute(*plan(sorted(set(seen))), address(out))
    return out


def expected(model: Model, layer: int, x, ids, weights) -> torch.Tensor:
    return model.pools[layer].compute(x, ids, weights)[0]


class Shuffling:
    """Plans at random: residents, fetches, groups, prefetches; keeps account of what slots hold."""

    def __init__(self, model: Model, seed: int) -> None:
        self.random = random.Random(seed)
        self.slot_of: dict[tuple[int, int], int] = {}
        self.free = list(range(SLOTS))

    def take(self, used: set[int]) -> int | None:
        """A slot that this step has not launched from."""
        if self.free:
            return self.free.pop()
        others = [key for key, slot in self.slot_of.items() if slot not in used]
        return self.slot_of.pop(self.random.choice(others)) if others else None

    def plan(self, layer: int, active: list[int]):
        cpu, launches, used = [], [], set()
        for expert in self.random.sample(active, len(active)):
            slot = self.slot_of.get((layer, expert))
            if slot is not None and self.random.random() < 0.8:
                launches.append(([expert], [slot], False))
                used.add(slot)
            elif slot is None and self.random.random() < 0.6 and (slot := self.take(used)) is not None:
                self.slot_of[layer, expert] = slot
                launches.append(([expert], [slot], True))
                if self.random.random() < 0.7:
                    used.add(slot)  # else it may be recycled within the step
            else:
                cpu.append(expert)
        launches = self.group(launches)
        fetches = []
        later = self.random.randrange(LAYERS)
        for expert in self.random.sample(range(EXPERTS), 2):
            if (later, expert) not in self.slot_of and (slot := self.take(set())) is not None:
                self.slot_of[later, expert] = slot
                fetches.append((later, expert, slot))
        return cpu, launches, fetches

    def group(self, launches):
        """Some neighbours of a kind, and of different slots, are launched together."""
        groups = []
        for experts, slots, fetch in launches:
            last = groups[-1] if groups else None
            if last and last[2] == fetch and slots[0] not in last[1] and self.random.random() < 0.5:
                last[0].extend(experts)
                last[1].extend(slots)
            else:
                groups.append((experts, slots, fetch))
        return groups


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_plan_and_the_order_the_bits_are_the_cpus(driver, folder, dtype, seed):
    driver.reset(seed)
    model = Model(driver, folder, dtype)
    plans, generator = Shuffling(model, seed), torch.Generator().manual_seed(seed)
    steps = []
    for number in range(18):
        layer = number % LAYERS
        x, ids, weights = routed(
            generator, (1, 2, 3, 8, 40, 100)[number % 6 if number > 11 else number % 4], dtype
        )
        out = step(model, layer, x, ids, weights, lambda active, layer=layer: plans.plan(layer, active))
        steps.append((layer, x, ids, weights, out))
    model.layers.recover()  # all queues are empty after it
    assert driver.races == []
    assert driver.calls("cuMemcpyDtoHAsync_v2") > 0  # as large steps' activations come down
    for layer, x, ids, weights, out in steps:
        assert torch.equal(out.view(torch.uint8), expected(model, layer, x, ids, weights).view(torch.uint8))


def test_experts_are_prefetched_placed_and_said_to_have_landed(driver, folder):
    driver.reset(1)
    model = Model(driver, folder)
    model.layers.place([(0, 5, 0), (1, 2, 1)])
    assert model.layers.landed() == 2
    generator = torch.Generator().manual_seed(1)
    x, ids, weights = routed(generator, 1, torch.bfloat16)
    ids[0, :3] = torch.tensor([5, 1, 2])
    out = step(model, 0, x, ids, weights, lambda active: ([1, 2], [([5], [0], False)], [(1, 7, 2)]))
    while model.layers.landed() < 3:
        pass
    model.layers.recover()
    assert torch.equal(out, expected(model, 0, x, ids, weights))


CALLS = ("launch", "copy_up", "record_event", "wait_event", "query_stream")
SYMBOLS = {
    "launch": "cuLaunchKernel",
    "copy_up": "cuMemcpyHtoDAsync_v2",
    "record_event": "cuEventRecord",
    "wait_event": "cuStreamWaitEvent",
    "query_stream": "cuStreamQuery",
}


@pytest.mark.parametrize("call", CALLS)
def test_after_a_call_that_fails_the_next_step_works(driver, folder, call):
    driver.reset(2)
    model = Model(driver, folder)
    generator = torch.Generator().manual_seed(2)
    said: list[str] = []
    for number in range(20 if call == "query_stream" else 6):
        x, ids, weights = routed(generator, 2, torch.bfloat16)
        plan = lambda active: ([active[0]], [(active[1:], list(range(len(active) - 1)), True)], [(1, 0, 8)])  # noqa: E731
        driver.fail(SYMBOLS[call], 1 if call == "query_stream" else 1 + number % 3, 700)
        try:
            step(model, 0, x, ids, weights, plan)
        except compiled.GpuFailure as error:
            said.append(str(error))
        driver.fail("", 0, 0)
        model.layers.recover()
        out = step(model, 0, x, ids, weights, plan)
        model.layers.recover()
        assert torch.equal(out, expected(model, 0, x, ids, weights))
    assert set(said) == {f"{call}: CUDA_ERROR_ILLEGAL_ADDRESS, an illegal memory access was encountered"}


@pytest.mark.parametrize(
    "call", ["cuMemAlloc_v2", "cuMemHostAlloc", "cuStreamCreate", "cuEventCreate", "cuModuleGetFunction"]
)
def test_what_cannot_be_had_leaves_nothing_behind(driver, folder, call):
    driver.reset(3)
    before = driver.used
    driver.fail(call, 1, 2)
    with pytest.raises(compiled.GpuFailure, match="OUT_OF_MEMORY"):
        Model(driver, folder)
    driver.fail("", 0, 0)
    assert driver.used == before


def test_too_little_memory_is_said_before_anything_runs(driver, folder):
    driver.reset(4, total=4096)
    with pytest.raises(compiled.GpuFailure, match="allocate: CUDA_ERROR_OUT_OF_MEMORY"):
        Model(driver, folder)


def test_what_is_no_driver_is_said(tmp_path):
    with pytest.raises(compiled.GpuFailure, match="there is no NVIDIA driver"):
        compiled.GpuDevice(str(tmp_path / "libcuda.so"), 0)


def test_an_old_driver_is_said(folder):
    with pytest.raises(compiled.GpuFailure, match=r"too old: it lacks cuGetErrorName"):
        compiled.GpuDevice(str(next(folder.glob("4_4*.so"))), 0)


def test_a_gpu_that_is_not_there_is_said(driver):
    driver.reset(5)
    with pytest.raises(compiled.GpuFailure, match=r"there are 1 GPUs, and no number 1"):
        compiled.GpuDevice(str(driver.path), 1)


def test_a_step_that_is_too_large_is_refused(driver, folder):
    driver.reset(6)
    model = Model(driver, folder)
    x, ids, weights = routed(torch.Generator().manual_seed(0), MOST_TOKENS + 1, torch.bfloat16)
    with pytest.raises(compiled.GpuFailure, match="121 tokens was not planned for"):
        step(model, 0, x, ids, weights, None)
