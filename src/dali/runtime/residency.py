"""Where every expert is on the accelerator: the one owner of that truth.

Slots of one arena, each one expert's record. A layer keeps as many residents as it began with; the other slots are scratch and
recycle: demanded experts pass through them within a layer, prefetched ones wait in them for their layer. A scratch slot is free
again as soon as the launch that reads it is queued: the next copy into it is then ordered behind that launch by the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from dali.devices import Buffer, Device, Event
from dali.policies.plan import ResidencyView
from dali.runtime.loans import Loans

COPY = "copy"


@dataclass(slots=True)
class Holding:
    """An expert's record in a slot. `due`: when its copy is expected to end, on the device's clock; `landed`: it was seen to."""

    layer: int
    expert: int
    slot: Buffer
    due: float
    landed: bool = False


class Residency:
    """Residents, experts in flight, free slots and the copies between host and accelerator."""

    def __init__(
        self,
        device: Device,
        loans: Loans,
        layers: int,
        record_bytes: int,
        slots: int,
        resident_slots: int,
        link_seconds: tuple[float, float],
    ) -> None:
        """`loans`: of the host's experts, each held until it is copied. `slots`: of which `resident_slots` are for
        all layers' residents, the rest scratch. `link_seconds`: one copy alone and while the CPU computes, as modelled."""
        self.device = device
        self.loans = loans
        self.resident_slots = resident_slots
        self.scratch_slots = slots - resident_slots
        self.copies = 0
        self.link_free = 0.0  # when the copies queued so far are expected to be done, on the device's clock
        self._link_seconds = link_seconds
        self._expected = link_seconds[0]  # of one copy alone
        self.landed = 0  # copies that were seen to
        self._stream = device.stream(COPY)
        self._memory = device.alloc(slots * record_bytes) if slots else None
        self._free: deque[Buffer] = deque(self._memory.split(record_bytes) if self._memory else ())
        self._residents: list[dict[int, Holding]] = [{} for _ in range(layers)]
        self._scratch: list[dict[int, Holding]] = [{} for _ in range(layers)]
        self._unsettled: list[set[int]] = [set() for _ in range(layers)]  # residents not seen to have landed
        self._swapping = 0, -1, 0, -1  # layer, load, donor, evict of the last swap
        # Copies not seen to end, in the order they will, with what they fill.
        self._flying: deque[tuple[Event, list[Holding]]] = deque()

    def close(self) -> None:
        if self._memory is not None:
            self.device.free(self._memory)
            self._memory = None

    def place(self, layer: int, experts: Iterable[int]) -> None:
        """Copy a layer's first residents in."""
        for expert in experts:
            self._keep(layer, expert, *self._copy(layer, [expert], [self._free.popleft()]))

    def reset(self) -> None:
        """After a failed step: what slots hold is unknown, so copy every layer's residents in again.

        Itself interrupted, it can be called again: at no moment a resident is missing.
        """
        if self._memory is None:
            return
        self._free = deque(self._memory.parts)
        self.link_free = 0.0
        self._flying.clear()
        for waiting in self._scratch:
            waiting.clear()
        layer, load, donor, evict = self._swapping
        if evict in self._residents[donor]:  # the step failed amid a swap
            self._residents[layer].pop(load, None)
        for layer, residents in enumerate(self._residents):
            self._unsettled[layer].intersection_update(residents)
            self.place(layer, list(residents))

    def expect(self, link_seconds: float) -> None:
        """From now on expect a copy to take so long."""
        self._expected = link_seconds

    def view(self, layer: int) -> ResidencyView:
        """The layer's experts as a policy sees them now, good until the layer's next swap."""
        now = self.device.now()
        residents, unsettled = self._residents[layer], self.unsettled(layer)
        in_flight = {expert: max(residents[expert].due - now, 0.0) for expert in unsettled}
        scratch = self._scratch[layer]
        for expert, holding in scratch.items():
            in_flight[expert] = 0.0 if holding.landed else max(holding.due - now, 0.0)
        return ResidencyView(
            residents.keys() - unsettled if unsettled else residents.keys(),
            in_flight,
            len(self._free) + len(scratch),
            max(self.link_free - now, 0.0),
        )

    def residents(self, layer: int) -> Set[int]:
        """Experts that hold the layer's own slots, landed or not; changes as they do."""
        return self._residents[layer].keys()

    def is_resident(self, layer: int, expert: int) -> bool:
        """Whether the expert holds one of the layer's own slots, landed or not."""
        return expert in self._residents[layer]

    def unsettled(self, layer: int) -> Set[int]:
        """Residents whose copy has not landed yet."""
        flying = self._flying
        while flying and self.device.done(flying[0][0]):
            for holding in flying[0][1]:
                holding.landed = True
                if self._residents[holding.layer].get(holding.expert) is holding:
                    self._unsettled[holding.layer].discard(holding.expert)
            self.landed += len(flying[0][1])
            flying.popleft()  # last: an interrupt before it costs nothing
        return self._unsettled[layer]

    def scratch(self, layer: int) -> list[int]:
        """Experts in scratch slots that wait for the layer."""
        return list(self._scratch[layer])

    def free_slots(self) -> int:
        return len(self._free)

    def slots(self, layer: int, experts: Iterable[int]) -> list[Buffer]:
        """The slots a launch on `experts` reads."""
        residents, scratch = self._residents[layer], self._scratch[layer]
        return [(residents.get(expert) or scratch[expert]).slot for expert in experts]

    def fetch(self, layer: int, *experts: int) -> None:
        """Queue one copy of `experts` into free scratch slots."""
        slots = [self._free.popleft() for _ in experts]
        self._scratch[layer].update(zip(experts, self._copy(layer, experts, slots), strict=True))

    def release(self, layer: int, expert: int) -> None:
        """Give a scratch slot back; launches that read it are queued already."""
        self._free.append(self._scratch[layer].pop(expert).slot)

    def swap(self, layer: int, evict: int, load: int, donor: int | None = None) -> None:
        """Make `load` a resident instead of `donor`'s `evict`: the slots change roles if it is in scratch, else it is copied."""
        donor = layer if donor is None else donor
        self._swapping = layer, load, donor, evict
        slot = self._residents[donor][evict].slot
        if load in self._scratch[layer]:
            self._keep(layer, load, self._scratch[layer].pop(load))
            self._free.append(slot)
        else:
            self._keep(layer, load, *self._copy(layer, [load], [slot]))
        self._unsettled[donor].discard(evict)
        del self._residents[donor][evict]  # last: the set is never short of one

    def _keep(self, layer: int, expert: int, holding: Holding) -> None:
        self._residents[layer][expert] = holding
        if not holding.landed:
            self._unsettled[layer].add(expert)

    def _copy(self, layer: int, experts: Sequence[int], slots: Sequence[Buffer]) -> list[Holding]:
        """Queue one copy of them all."""
        device, (alone, contended), count = self.device, self._link_seconds, len(experts)
        lease = self.loans.lease(layer, experts)
        event = device.fetch(
            self._stream, layer, experts, slots, lease.records, count * alone, count * contended
        )
        self.copies += count
        self.loans.lend(lease, event)
        self.link_free = due = max(self.link_free, device.now(), lease.ready) + count * self._expected
        held = [Holding(layer, *held, due) for held in zip(experts, slots, strict=True)]
        self._flying.append((event, held))
        return held
