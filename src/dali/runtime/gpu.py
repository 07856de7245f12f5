"""The runtime over a GPU: plans as everywhere, and carries them out in native calls (src/native/gpu).

A layer's step waits for the GPU once, for its routing, which the GPU posts to the host's memory. Then the experts, the copies
they need and the fetches for later are queued in one call, which computes the CPU's experts meanwhile on the thread that calls.
For the default policies a compiled planner takes the place of the Python parts, so that all of a step is that one call.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dali.compiled import library
from dali.devices.cuda import GpuSlots, gpu_error, gpu_errors
from dali.policies.plan import LayerPlan, ResidencyView
from dali.runtime.executor import Executor
from dali.runtime.journal import Journal
from dali.runtime.loans import by_arrival
from dali.runtime.planner import planner, plans
from dali.telemetry import LayerCounters

IN_PYTHON = (
    "residency",
    "replacement",
    "guards",
    "decisions",
    "period",
)  # what the planner takes the place of
Launch = tuple[list[int], list[int], bool]  # experts, their slots, whether they are fetched


@dataclass
class GpuStep:
    """What a layer's step asks of the native layers."""

    layer: int
    cpu: list[int]
    launches: list[Launch] = field(default_factory=list)
    recyclable: deque[int] = field(default_factory=deque)  # in scratch slots, the oldest launch first


@dataclass(slots=True)
class Posted:
    """What the host has of a posted step: its x [tokens, hidden] and weights [tokens, top_k], once the routing is there, and how
    many ids were predicted of layers from `later` on; None: of none."""

    x: Tensor
    weights: Tensor
    later: int | None
    ahead: int


class GpuExecutor(Executor):
    """Runs the MoE layers of one model over a GPU."""

    device: GpuSlots
    most_tokens = 512  # of a step
    _posted: list[Tensor]  # what the GPU reads of the step under way must stay
    _out: int | None = None  # where the sum of a posted step goes
    _cpu_seconds = 0.0  # of the CPU's experts, in the last step
    planner: Any = None  # the compiled one, where it decides as the policies do
    routed: Callable[[int, Tensor, Tensor, Tensor], None] | None = (
        None  # is told a posted layer, its x, weights and ids
    )

    def __init__(self, *parts: Any, **options: Any) -> None:
        """As Executor's."""
        super().__init__(*parts, **options)
        self.residency.link_free = 0.0  # the first residents are there, whenever that was expected
        if not (plans(self.policies, self.guards.guarded) and self._pool.whole_layers):
            return
        layers, experts, slot = self._pool.layers, self._pool.experts, self.device.slot
        self.planner = planner(
            self.residency, slot, layers, experts, self._costs, self.guards.predicts, self._workload
        )
        # From here on they are not told of steps: nobody shall ask them.
        self._in_python = {name: vars(self).pop(name) for name in IN_PYTHON}

    def plan_in_python(self) -> None:
        """From now on let the policies themselves decide where compiled code does, for whoever asks why, or which experts were
        chosen. Slots are filled anew. For who lets no step run meanwhile."""
        if self.planner is not None:
            self.planner = None
            vars(self).update(self._in_python)
            self.guards.costs = self.prefetcher.costs = self.expected.now
            self.residency.expect(self.expected.now.link)
            self._failed = True  # until what slots hold, which was the planner's to know, is known here
            self._recover()

    def resume(self) -> None:
        """Have the device's slots again after another executor had them; what they are to hold is copied anew."""
        self._recover()

    def keep_journal(self) -> Journal:
        """As Executor's; from here on plans are made in Python."""
        self.plan_in_python()
        return super().keep_journal()

    def run(self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """As Executor.run; a step larger than the native layers were made for is cut, into pieces that are no decoding steps."""
        if len(hidden) <= self.most_tokens:
            return super().run(layer, hidden, ids, weights)
        count = -(-len(hidden) // self.most_tokens)
        pieces = zip(*(torch.tensor_split(part, count) for part in (hidden, ids, weights)), strict=True)
        return torch.cat([super(GpuExecutor, self).run(layer, *piece) for piece in pieces])

    def execute_posted(self, layer: int, posted: Posted, out: int) -> None:
        """Plan and carry out a layer's step that `library.GpuModel.dense` has posted, by policies in Python. out: address of
        where the sum goes."""
        layers, ids = self.device.layers, posted.weights.numel()
        with gpu_errors(self.device.name):
            routed, foreseen = layers.routing(ids, posted.ahead)
        ahead = None if posted.later is None else torch.tensor(foreseen).view(-1, posted.weights.shape[1])
        chosen = torch.tensor(routed).view(posted.weights.shape)
        if self.routed is not None:
            self.routed(layer, posted.x, posted.weights, chosen)
        self._out = out
        try:
            self._execute(layer, posted.x, chosen, posted.weights, posted.later, ahead)
        finally:
            self._out = None

    @contextmanager
    def whole_step(self) -> Iterator[None]:
        """A step of all layers. As for run(): after a failure inside, the next starts from slots that were filled anew."""
        if self._failed:
            self._recover()
        try:
            yield
        except BaseException as failure:
            self._failed = True
            self.device.gpu.hand_over()  # what is queued still writes keys and values, which their owners now let go of
            if isinstance(failure, library.GpuFailure):
                raise gpu_error(self.device.name, failure) from failure
            raise

    def _recover(self) -> None:
        self.device.recover()
        if self.planner is None:
            super()._recover()  # fills the slots anew
            self.device.synchronize()
            self.residency.link_free = 0.0
        else:
            self.device.place(self.planner.reset())
            self._failed = False

    def _run(self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        if self.planner is None:
            return super()._run(layer, hidden, ids, weights)
        if layer == 0:
            self.begin_step(len(hidden))
        device, layers, seconds, later = self.device, self.device.layers, 0.0, 0
        predicted = None
        if self.planner.prefetches:
            predicted = self.prefetcher.predict(layer, hidden)
            seconds = self.prefetcher.predict_seconds
        if predicted is not None:
            later = predicted[0]
        begin = self._begin(layer, hidden, ids, weights, None if predicted is None else predicted[1])
        out = torch.empty_like(self._posted[0])
        try:
            if (work := self._beside[layer]) is None:
                outcome = layers.step(self.planner, *begin, later, seconds, out.data_ptr())
            else:
                layers.begin(*begin)
                work(hidden)
                outcome = layers.finish(self.planner, later, seconds, out.data_ptr())
        except library.GpuFailure as failure:  # not `gpu_errors`, which takes a twentieth of the step's time
            raise gpu_error(device.name, failure) from failure
        device.gpu.hand_over()
        self.count_step(layer, ids.numel(), later, outcome)
        return out

    def begin_step(self, tokens: int) -> None:
        super().begin_step(tokens)
        if self.planner is not None:
            self.planner.put_all_on_cpu(self._on_cpu)

    def _copies(self) -> tuple[int, float]:
        timed: tuple[int, float] = self.device.layers.timed()
        return timed

    def _tick(self, layer: int, counters: LayerCounters) -> float:
        now = time.perf_counter()
        self.period.start(layer, now)
        return now

    def _routing(
        self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor, predicted: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        device = self.device
        begin = self._begin(layer, hidden, ids, weights, predicted)
        with gpu_errors(device.name):
            device.layers.begin(*begin)
            routed, foreseen = device.layers.routing(
                ids.numel(), 0 if predicted is None else predicted.numel()
            )
        ahead = None if predicted is None else torch.tensor(foreseen).view(predicted.shape)
        return torch.tensor(routed).view(ids.shape), ahead

    def _begin(
        self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor, predicted: Tensor | None
    ) -> tuple[int, ...]:
        """What begin() of the native layers takes."""
        posted = [hidden.contiguous(), ids.long().contiguous(), weights.float().contiguous()]
        ahead = count = 0
        if predicted is not None:
            posted.append(predicted.contiguous())
            ahead, count = posted[3].data_ptr(), predicted.numel()
        self._posted = posted
        addresses = [tensor.data_ptr() for tensor in posted[:3]]
        return layer, len(ids), *addresses, ahead, count, self.device.gpu.queue()

    def _queue(
        self,
        layer: int,
        hidden: Tensor,
        routed: Tensor,
        workload: list[int],
        plan: LayerPlan,
        view: ResidencyView,
    ) -> GpuStep:
        missing = self._loans.note(layer, [*plan.cpu, *plan.fetch])
        plan, missing = by_arrival(plan, missing, workload, self.expected.now)
        if self.journal is not None:
            self.journal.arrange(plan, missing)
        step = GpuStep(layer, list(plan.cpu))
        self._start_present(step, plan, view)
        self._fetch(step, plan.fetch, view)
        return step

    def _launch(self, step: Any, experts: Sequence[int]) -> None:
        device = self.device
        slots = [device.slot(buffer) for buffer in self.residency.slots(step.layer, experts)]
        fetches = [(step.layer, *each) for each in zip(experts, slots, strict=True)]
        fetched = fetches[0] in device.asked
        if fetched:  # they go before all others, with their launch
            device.asked = [asked for asked in device.asked if asked not in fetches]
        step.launches.append((list(experts), slots, fetched))

    def _sum(self, step: Any, weights: Tensor, hidden: Tensor) -> Tensor:
        device = self.device
        asked, device.asked = device.asked, []
        if self._out is None:
            result = torch.empty_like(self._posted[0])
            out = result.data_ptr()
        else:  # the GPU's own kernels go on from there: nobody asks for a tensor
            result, out = hidden, self._out
        with gpu_errors(device.name):
            self._cpu_seconds = device.layers.execute(step.cpu, step.launches, asked, out)
        device.gpu.hand_over()
        return result

    def count_step(self, layer: int, pairs: int, later: int, outcome: tuple[Any, ...]) -> None:
        """Count what a native step did, as it says."""
        cpu, resident, prefetched, fetched, late, wasted, swaps, copied, ahead, *seconds = outcome
        counters, layout = self._telemetry.layer(layer), self._layouts[layer]
        counters.steps += 1
        counters.routed_tokens += pairs
        counters.resident += resident
        counters.prefetched += prefetched
        counters.fetched += fetched
        counters.cpu += cpu
        counters.expert_bytes += (resident + prefetched + fetched + cpu) * layout.weight_bytes
        counters.link_bytes += (fetched + copied) * layout.record_bytes
        counters.prefetch_used += prefetched
        counters.prefetch_late += late
        counters.prefetch_wasted += wasted
        counters.swaps += swaps
        counters.seconds += seconds[0]
        counters.cpu_seconds += seconds[2]
        if ahead:
            self._telemetry.layer(later).link_bytes += ahead * self._layouts[later].record_bytes
        self._telemetry.plan_seconds += seconds[1]
        expected = self.expected
        changed = expected.note_cpu(seconds[4], seconds[2])
        copies, copying = self._copies()
        if (copies and expected.note_copies(copies, copying)) or changed:
            self.planner.correct(expected.cpu.applied, expected.link.applied)
        if self.steps is not None:
            self.steps.add(layer, seconds[0] + seconds[3], seconds[5])

    def account(self, counters: LayerCounters, started: float) -> None:
        counters.seconds += time.perf_counter() - started
        counters.cpu_seconds += self._cpu_seconds
