"""One MoE layer of random experts, all of them on a GPU, to be held against the CPU's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dali.compiled import library
from dali.devices.cuda import Gpu
from dali.kernels.expert import ExpertLayout
from dali.kernels.gpu.experts import PASSES, experts_macros
from dali.kernels.native.experts import ExpertRecords, native_layout
from dali.kernels.native.library import DTYPES

Build = Callable[[str, Mapping[str, int]], bytes]  # a file of kernels and its macros -> what the driver loads


class OneLayer:
    """`records[e]` is expert e, in slot e. Steps of up to `most_tokens` tokens, each routed to `top_k` experts."""

    def __init__(
        self,
        gpu: Gpu,
        build: Build,
        layout: ExpertLayout,
        records: Tensor,
        top_k: int,
        dtype: torch.dtype = torch.bfloat16,
        most_tokens: int = 64,
        slots: Sequence[int] | None = None,
    ) -> None:
        """`slots[s]`: the expert in slot s, where it is not as above."""
        self.gpu, self.layout, self.records, self.dtype = gpu, layout, records, dtype
        self.in_slots = list(range(len(records))) if slots is None else list(slots)
        self.on_cpu = ExpertRecords(layout, list(records))

        def module(name: str, macros: Mapping[str, int]) -> Any:
            return library.GpuModule(gpu.native, build(name, macros))

        few, many = (module("experts", experts_macros(layout, passes)) for passes in PASSES)
        sizes = len(records), top_k, layout.shape.hidden, most_tokens, 1, DTYPES[dtype], DTYPES[torch.float32]
        slot_bytes = layout.record_bytes
        common = module("common", {})
        self.layers = library.GpuLayers(gpu.native, common, *sizes, slot_bytes, len(self.in_slots))
        self.layers.add(native_layout(layout), self.on_cpu._addresses, few, many)
        self.layers.place([(0, expert, slot) for slot, expert in enumerate(self.in_slots)])
        self._alive: list[Tensor] = []

    def begin(self, x: Tensor, ids: Tensor, weights: Tensor) -> list[int]:
        """The first half of a step; the active experts."""
        self._alive = [x, ids, weights]
        addresses = [tensor.data_ptr() for tensor in self._alive]
        self.layers.begin(0, len(x), *addresses, 0, 0, self.gpu.queue())
        routed, _ = self.layers.routing(ids.numel(), 0)
        assert routed == ids.flatten().tolist()
        return sorted(set(routed))

    def step(self, x: Tensor, ids: Tensor, weights: Tensor, cpu: Sequence[int] = ()) -> Tensor:
        """The layer's output, `cpu` computed there and all other experts on the GPU; poisoned where nothing was written."""
        out = torch.full_like(x, float("nan"))
        gpu = [expert for expert in self.begin(x, ids, weights) if expert not in cpu]
        launches = [(gpu, [self.in_slots.index(expert) for expert in gpu], False)] if gpu else []
        self.layers.execute(list(cpu), launches, [], out.data_ptr())
        self.gpu.hand_over()
        return out

    def expected(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """The CPU's output."""
        return self.on_cpu.compute(x.cpu(), ids.cpu(), weights.cpu())[0]


def random_step(
    layer: OneLayer, tokens: int, top_k: int, seed: int, experts: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """x, ids and weights on the GPU; only the first `experts` are chosen."""
    generator = torch.Generator().manual_seed(seed)
    count = len(layer.records) if experts is None else experts
    x = torch.randn(tokens, layer.layout.shape.hidden, generator=generator).to(layer.dtype)
    ids = torch.stack([torch.randperm(count, generator=generator)[:top_k] for _ in range(tokens)])
    weights = torch.rand(tokens, top_k, generator=generator)
    return tuple(part.to(layer.gpu.place) for part in (x, ids, weights))  # type: ignore[return-value]


def differing(found: Tensor, expected: Tensor) -> int:
    """Outputs that differ in any bit."""
    words = {4: torch.int32, 2: torch.int16}[found.itemsize]
    return int((found.cpu().view(words) != expected.view(words)).sum())
