"""The GPU as a plan sees it: copies of experts over the link, kernels of experts there, the host's launches and waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import torch

from dali.compiled import library
from dali.devices.cuda import Gpu, gpu_errors
from dali.hardware.profile import Table
from dali.kernels.expert import ExpertLayout
from dali.kernels.gpu.experts import PASSES, experts_macros
from dali.kernels.native.experts import ExpertRecords, native_layout
from dali.kernels.native.library import DTYPES
from dali.probe.experts import layout_of, record, table
from dali.probe.reading import Clock, Reading, reading_of, repeat
from dali.store.arena import Arena

Module = Callable[[str, dict[str, int]], Any]  # a file of kernels and its macros -> the kernels, loaded

FORMATS = ("w4", "w8", "q4k", "q6k", "mxfp4")
SHAPES = ((2048, 768), (2880, 2880))
TOKENS = (1, 8, 64)
TINY = (64, 32)  # hidden, intermediate of experts that take no time
ROOM = 3 * 2**27  # bytes of experts there, which no cache holds
AT_ONCE = 8  # experts of a launch, and copies and the CPU's experts that are under way together
CALLS = 256  # (token, choice) pairs that a launch's call holds; more pass through tables, of which there is room for one
LAUNCHES = 20
NOTHING = 1e-9  # seconds: differences of two times are no less


@dataclass
class Found:
    """Figures by name, and tables."""

    figures: dict[str, Reading] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)


class OneLayer:
    """Random experts of one layout, page-locked in RAM and in slots of the GPU; steps of up to max(TOKENS) tokens."""

    def __init__(self, gpu: Gpu, module: Module, layout: ExpertLayout, count: int, clock: Clock) -> None:
        self.gpu, self.layout, self.count, self._clock = gpu, layout, count, clock
        self._arena = Arena(count, layout.record_bytes)
        self._arena.all.copy_(record(layout).expand(count, layout.record_bytes))
        self._held = library.gpu_register(gpu.native, self._arena[0].data_ptr(), self._arena.nbytes)
        self._records = ExpertRecords(layout, [self._arena[index] for index in range(count)])
        few, many = (module("experts", experts_macros(layout, passes)) for passes in PASSES)
        kinds = DTYPES[torch.bfloat16], DTYPES[torch.float32]
        sizes = count, AT_ONCE, layout.shape.hidden, max(TOKENS), 1, *kinds, layout.record_bytes, count
        self.layers = library.GpuLayers(gpu.native, module("common", {}), *sizes)
        self.layers.add(native_layout(layout), self._records._addresses, few, many)
        self._next = cycle(range(0, count - AT_ONCE + 1, AT_ONCE))
        self.copy(count)

    def copy(self, count: int) -> float:
        """Seconds of so many copies, one behind the other."""
        fetches = [(0, index, index) for index in range(count)]
        begin = self._clock()
        self.layers.place(fetches)
        return self._clock() - begin

    def begin(self, tokens: int) -> float:
        """The first half of a step whose tokens all choose the same experts; seconds until the host knows."""
        place, hidden = self.gpu.place, self.layout.shape.hidden
        x = torch.zeros(tokens, hidden, device=place, dtype=torch.bfloat16)
        ids = torch.arange(AT_ONCE, device=place).repeat(tokens, 1)
        weights = torch.full((tokens, AT_ONCE), 1 / AT_ONCE, device=place)
        self._alive, self._out = (x, ids, weights), torch.empty_like(x)
        self.gpu.wait()
        begin = self._clock()
        addresses = [each.data_ptr() for each in self._alive]
        self.layers.begin(0, tokens, *addresses, 0, 0, self.gpu.queue())
        self.layers.routing(ids.numel(), 0)
        return self._clock() - begin

    def launch(self, tokens: int, launches: int) -> float:
        """Seconds of so many launches of AT_ONCE experts, each for all tokens."""
        self.begin(tokens)
        experts = list(range(AT_ONCE))
        plan = [
            (experts, [*range(at, at + AT_ONCE)], False) for at in (next(self._next) for _ in range(launches))
        ]
        begin = self._clock()
        self.layers.execute([], plan, [], self._out.data_ptr())
        self.gpu.wait()
        return self._clock() - begin

    def both(self, fetches: int) -> tuple[float, float]:
        """Copies beside the CPU's experts: seconds until the copies have landed, and those of the experts."""
        self.begin(1)
        wanted = [(0, self.count - 1 - each, self.count - 1 - each) for each in range(fetches)]
        landed = self.layers.landed() + fetches
        begin = self._clock()
        experts: float = self.layers.execute(list(range(AT_ONCE)), [], wanted, self._out.data_ptr())
        while self.layers.landed() < landed:
            pass
        copied = self._clock() - begin
        self.gpu.wait()
        return copied, experts


def measure(gpu: Gpu, module: Module, clock: Clock, source: str, formats: Sequence[str] = FORMATS) -> Found:
    """Figures and tables of a GPU. DaliError: it fails, or its readings are no times."""
    found = Found()
    memory = gpu.memory()[1]
    found.figures["gpu_memory"] = Reading(memory, 0.0, 1)
    with gpu_errors(gpu.name):
        tiny = OneLayer(gpu, module, layout_of("w4", *TINY), 4 * AT_ONCE, clock)
        _fixed_times(tiny, clock, found)
        for format in formats:
            for hidden, intermediate in SHAPES:
                layout = layout_of(format, hidden, intermediate)
                layer = OneLayer(gpu, module, layout, max(ROOM // layout.record_bytes, 2 * AT_ONCE), clock)
                if not found.tables:
                    _link(layer, clock, found, source)
                found.tables.append(table(layout, _points(layer, clock), source, device="gpu"))
    first = next(each for each in found.tables if each.device == "gpu")
    seconds = dict(first.points)
    of = Reading(seconds[1], first.spread, 1)
    found.figures["gpu_bandwidth"] = of.under(first.bytes)
    most = max(TOKENS)
    found.figures["gpu_rate"] = Reading(2 * first.parameters * most / seconds[most], first.spread, 1)
    return found


def _fixed_times(tiny: OneLayer, clock: Clock, found: Found) -> None:
    """What copies, launches and waits take whatever their size."""

    def copy() -> float:
        return max(tiny.copy(tiny.count) - tiny.copy(1), NOTHING) / (tiny.count - 1)

    def launch() -> float:
        return max(tiny.launch(1, LAUNCHES) - tiny.launch(1, 1), NOTHING) / (LAUNCHES - 1) / 2

    found.figures["link_latency"] = repeat("the link's latency", copy, clock)
    found.figures["launch"] = repeat("a launch", launch, clock)
    found.figures["sync"] = repeat("the host's wait", lambda: max(tiny.begin(1), NOTHING), clock)


def _link(layer: OneLayer, clock: Clock, found: Found, source: str) -> None:
    """Copies alone, and beside the CPU's experts, which are measured beside them too."""
    size, latency = layer.layout.record_bytes, found.figures["link_latency"].value

    def copy() -> float:
        each = max(layer.copy(2 * AT_ONCE) - layer.copy(AT_ONCE), NOTHING) / AT_ONCE
        return max(each - latency, NOTHING)

    found.figures["link_bandwidth"] = repeat("the link", copy, clock).under(size)
    experts: list[float] = []
    layer.both(AT_ONCE)  # memory for the step, once

    def both() -> float:
        copied, computed = layer.both(AT_ONCE)
        experts.append(max(computed, NOTHING) / AT_ONCE)
        return max(copied, NOTHING) / AT_ONCE

    found.figures["link_contended"] = repeat("the link beside the CPU", both, clock).under(size)
    beside = reading_of("the CPU's experts beside copies", experts)
    found.tables.append(table(layer.layout, {1: beside}, source, beside="copies"))


def _points(layer: OneLayer, clock: Clock) -> dict[int, Reading]:
    """Seconds of one expert by tokens, the launch's own not counted."""
    points = {}
    for tokens in TOKENS:
        launches = LAUNCHES if AT_ONCE * tokens <= CALLS else 1

        def seconds(tokens: int = tokens, launches: int = launches) -> float:
            return max(layer.launch(tokens, launches) - layer.launch(tokens, 0), NOTHING) / launches / AT_ONCE

        points[tokens] = repeat("experts on the GPU", seconds, clock)
    return points
