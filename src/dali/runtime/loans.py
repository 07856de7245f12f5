"""What steps and copies have of the host's experts, each as long as it reads them.

Where a part of the experts is on disk, those that the CPU computes or that are copied are leased from the pool, which reads what
is absent, and a slot in RAM is another expert's as soon as all leases of it have ended. A step takes first those that are in RAM,
then the others as they arrive; where there are more than slots, as many at a time as there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from dali.devices import Device, Event
from dali.hardware.cost import ExpertCosts
from dali.policies.plan import LayerPlan
from dali.runtime.modelled_reads import ModelledReads
from dali.store.disk_pool import DiskPool
from dali.store.expert_pool import ExpertPool, Lease


class Loans:
    """Leases of one pool for one device."""

    def __init__(
        self, device: Device, pool: ExpertPool, reads: ModelledReads | None = None, native: bool = False
    ) -> None:
        """`reads`: models those of a pool on disk, on a simulated device. `native`: native calls lease what they compute and
        copy, and here nothing is."""
        self.pool = pool
        self._device = device
        self._disk = pool if isinstance(pool, DiskPool) else None
        self._reads = reads
        self._native = native
        self._lent: deque[tuple[Event, Lease]] = deque()  # with when they end, the oldest first
        self._ready: dict[tuple[int, int], float] = {}  # when experts that are being read will be there

    def note(self, layer: int, experts: Sequence[int]) -> list[int]:
        """A step wants those experts in RAM: which of them are not there."""
        while self._lent and self._device.done(self._lent[0][0]):
            self._lent.popleft()
        if self._native:
            return [expert for expert in experts if not self.pool.holds(layer, expert)]
        return self.pool.note(layer, experts)

    def holds(self, layer: int, expert: int) -> bool:
        """Whether an expert can be copied without a read."""
        return self.pool.holds(layer, expert)

    def lease(self, layer: int, experts: Sequence[int]) -> Lease:
        """Experts of a layer in RAM, waited for, until the lease is let go of."""
        if self._disk is None:
            return self.pool.lease(layer, experts)
        if self._native:
            return Lease(self.pool.layouts[layer], ())
        while self._disk.room(layer, experts) < 0:
            self._wait()
        absent = [expert for expert in experts if not self._disk.holds(layer, expert)]
        lease = self._disk.lease(layer, experts, noted=True)
        if self._reads is not None:
            records = dict(zip(experts, lease.records, strict=True))
            into = {expert: self._device.adopt(records[expert]) for expert in absent}
            for expert, end in self._reads.read(layer, into).items():
                self._ready[layer, expert] = end
            lease.ready = max([self._ready.get((layer, expert), 0.0) for expert in experts], default=0.0)
        return lease

    def lend(self, lease: Lease, until: Event) -> None:
        """Keep a lease until then."""
        if self._disk is not None and not self._native:
            self._lent.append((until, lease))

    def portions(
        self, layer: int, plan: LayerPlan, missing: Sequence[int]
    ) -> Iterator[tuple[list[int], list[int]]]:
        """The experts of a plan that have to be in RAM, as `by_arrival` has ordered them: those that the CPU computes and those
        that are copied, of those that are there together, of the `missing` one at a time. All that are given are leased until the
        next are asked for. The first portion may be empty."""
        if self._disk is None:
            yield list(plan.cpu), list(plan.fetch)
            return
        on_cpu, late = set(plan.cpu), set(missing)
        waiting = [expert for expert in (*plan.cpu, *plan.fetch) if expert not in late]
        together = len(waiting)
        waiting += missing
        while True:
            most = len(waiting)
            if self._disk.room(layer, waiting) < 0:
                most = max(min(self._disk.room(layer, ()), most), 1)
            lease = self.lease(layer, waiting[:most])
            first = min(together, most)
            for some in (waiting[:first], *([expert] for expert in waiting[first:most])):
                yield [e for e in some if e in on_cpu], [e for e in some if e not in on_cpu]
            del lease
            waiting, together = waiting[most:], together - first
            if not waiting:
                return

    def forget(self) -> None:
        """After a failure, when nothing runs any more: all leases have ended."""
        self._lent.clear()
        self._ready.clear()

    def _wait(self) -> None:
        """Let the oldest lease end."""
        until, _ = self._lent[0]
        self._device.synchronize(until)
        self._lent.popleft()


def by_arrival(
    plan: LayerPlan, missing: Sequence[int], workload: Sequence[int], costs: ExpertCosts
) -> tuple[LayerPlan, list[int]]:
    """A plan with the experts that have to be read behind the others, and these in the order that they are to be read in: those
    with the most to do first, as in a replay."""
    if not missing:
        return plan, []
    on_cpu, late = set(plan.cpu), set(missing)

    def rest(expert: int) -> float:
        tokens = workload[expert]
        return costs.cpu[tokens] if expert in on_cpu else costs.link + costs.gpu[tokens] + costs.launch

    needed = (*plan.cpu, *plan.fetch)
    arriving = [expert for expert in needed if expert not in late]
    order = sorted([expert for expert in needed if expert in late], key=rest, reverse=True)
    arriving += order
    fetch = tuple(expert for expert in arriving if expert not in on_cpu)
    there = plan.gpu[: len(plan.gpu) - len(fetch)]
    return LayerPlan(tuple(e for e in arriving if e in on_cpu), there + fetch, fetch), order
