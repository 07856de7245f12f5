"""Where every expert is on the accelerator: the one owner of that truth.

Slots of one arena, each one expert's record. A layer keeps `capacity` residents; the other slots are scratch and recycle:
demanded experts pass through them within a layer, prefetched ones wait in them for their layer. A scratch slot is free again
as soon as the launch that reads it is queued: the next copy into it is then ordered behind that launch by the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from dali.devices import Buffer, Device, Event
from dali.policies.plan import ResidencyView

COPY = "copy"


@dataclass
class Holding:
    """An expert's record in a slot. `copied`: the end of its copy, None once it was seen to have come; `due`: when it is
    expected, on the device's clock."""

    slot: Buffer
    copied: Event | None
    due: float


class Residency:
    """Residents, experts in flight, free slots and the copies between host and accelerator."""

    def __init__(
        self,
        device: Device,
        record: Callable[[int, int], Tensor],
        layers: int,
        record_bytes: int,
        slots: int,
        capacity: int,
        link_seconds: tuple[float, float],
    ) -> None:
        """`record(layer, expert)`: the host's bytes. `slots`: of which `capacity` a layer are residents' and the rest scratch.
        `link_seconds`: one copy alone and while the CPU computes, as modelled."""
        self.device = device
        self.capacity = capacity
        self.scratch_slots = slots - layers * capacity
        self.copies = 0
        self.link_free = 0.0  # when the copies queued so far are expected to be done, on the device's clock
        self._source = cache(lambda layer, expert: device.adopt(record(layer, expert)))
        self._link_seconds = link_seconds
        self._stream = device.stream(COPY)
        self._memory = device.alloc(slots * record_bytes) if slots else None
        self._free: deque[Buffer] = deque(self._memory.split(record_bytes) if self._memory else ())
        self._residents: list[dict[int, Holding]] = [{} for _ in range(layers)]
        self._unsettled: list[set[int]] = [
            set() for _ in range(layers)
        ]  # residents whose copy was not seen to land
        self._scratch: list[dict[int, Holding]] = [{} for _ in range(layers)]

    def close(self) -> None:
        if self._memory is not None:
            self.device.free(self._memory)
            self._memory = None

    def place(self, layer: int, experts: Iterable[int]) -> None:
        """Copy a layer's first residents in."""
        for expert in experts:
            self._keep(layer, expert, self._copy(layer, expert, self._free.popleft()))

    def reset(self) -> None:
        """After a failed step: what slots hold is unknown, so copy every layer's residents in again.

        Itself interrupted, it can be called again: at no moment a resident is missing.
        """
        if self._memory is None:
            return
        self._free = deque(self._memory.parts)
        self.link_free = 0.0
        for waiting in self._scratch:
            waiting.clear()
        for layer, residents in enumerate(self._residents):
            for expert in list(residents)[self.capacity :]:  # one too many: the step failed amid a swap
                del residents[expert]
            self._unsettled[layer].intersection_update(residents)
            self.place(layer, list(residents))

    def view(self, layer: int) -> ResidencyView:
        """The layer's experts as a policy sees them now."""
        now = self.device.now()
        residents, scratch = self._residents[layer], self._scratch[layer]
        unsettled = self.unsettled(layer)
        in_flight = {expert: max(residents[expert].due - now, 0.0) for expert in unsettled}
        for expert, holding in scratch.items():
            in_flight[expert] = 0.0 if self._has_landed(holding) else max(holding.due - now, 0.0)
        slots = len(self._free) + len(scratch)
        return ResidencyView(residents.keys() - unsettled, in_flight, slots, max(self.link_free - now, 0.0))

    def residents(self, layer: int) -> set[int]:
        """Experts that hold the layer's own slots, landed or not."""
        return set(self._residents[layer])

    def is_resident(self, layer: int, expert: int) -> bool:
        """Whether the expert holds one of the layer's own slots, landed or not."""
        return expert in self._residents[layer]

    def unsettled(self, layer: int) -> set[int]:
        """Residents whose copy has not landed yet."""
        residents, unsettled = self._residents[layer], self._unsettled[layer]
        unsettled -= {expert for expert in unsettled if self._has_landed(residents[expert])}
        return set(unsettled)

    def scratch(self, layer: int) -> list[int]:
        """Experts in scratch slots that wait for the layer."""
        return list(self._scratch[layer])

    def free_slots(self) -> int:
        return len(self._free)

    def slot(self, layer: int, expert: int) -> Buffer:
        """The slot a launch on `expert` reads."""
        holding = self._residents[layer].get(expert) or self._scratch[layer][expert]
        return holding.slot

    def fetch(self, layer: int, expert: int) -> None:
        """Queue a copy of `expert` into a free scratch slot."""
        self._scratch[layer][expert] = self._copy(layer, expert, self._free.popleft())

    def release(self, layer: int, expert: int) -> None:
        """Give a scratch slot back; launches that read it are queued already."""
        self._free.append(self._scratch[layer].pop(expert).slot)

    def swap(self, layer: int, evict: int, load: int) -> None:
        """Make `load` a resident instead of `evict`: the slots change roles if it is in scratch, else it is copied."""
        slot = self._residents[layer][evict].slot
        if load in self._scratch[layer]:
            self._keep(layer, load, self._scratch[layer].pop(load))
            self._free.append(slot)
        else:
            self._keep(layer, load, self._copy(layer, load, slot))
        self._unsettled[layer].discard(evict)
        del self._residents[layer][evict]  # last: the set is never short of one

    def _keep(self, layer: int, expert: int, holding: Holding) -> None:
        self._residents[layer][expert] = holding
        self._unsettled[layer].add(expert)

    def _copy(self, layer: int, expert: int, slot: Buffer) -> Holding:
        alone, contended = self._link_seconds
        source = self._source(layer, expert)
        self.device.copy(self._stream, slot, source, alone, contended, label=f"copy {layer}.{expert}")
        self.copies += 1
        self.link_free = max(self.link_free, self.device.now()) + alone
        return Holding(slot, self.device.record(self._stream), self.link_free)

    def _has_landed(self, holding: Holding) -> bool:
        if holding.copied is not None and self.device.done(holding.copied):
            holding.copied = None
        return holding.copied is None
