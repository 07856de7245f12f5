"""Where every expert is during a replay: the rules of runtime.residency on plain numbers, and the link's queue.

A layer keeps its residents; demanded and prefetched experts pass through scratch slots, which all layers share. A swap whose
expert sits in scratch exchanges two slots' roles; any other copies, and its expert counts as resident once the copy has landed.
A copy that nobody waits for any more still has its turn on the link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from dali.policies.cache import Swap
from dali.policies.plan import ResidencyView

NOTHING: dict[int, float] = {}


class Copy:
    """One expert's way over the link: `left`, the seconds it still takes an idle one."""

    __slots__ = ("due", "left")

    def __init__(self, seconds: float) -> None:
        self.left = seconds
        self.due = 0.0


class Link:
    """Copies one after another; they progress at the contended pace while the CPU computes."""

    def __init__(self, alone: float, contended: float) -> None:
        self.alone = alone
        self.slowdown = contended / alone
        self.left = 0.0  # seconds of all copies queued
        self._queue: deque[Copy] = deque()

    def queue(self) -> Copy:
        copy = Copy(self.alone)
        self._queue.append(copy)
        self.left += self.alone
        return copy

    def work(self, seconds: float, cpu_end: float) -> float:
        """What the link gets done in the first `seconds` of a layer, in seconds of an idle one."""
        busy = min(seconds, cpu_end)
        return busy / self.slowdown + seconds - busy

    def elapsed(self, work: float, cpu_end: float) -> float:
        """Seconds from the layer's start until that much is done: the inverse."""
        at_contended_pace = work * self.slowdown
        return at_contended_pace if at_contended_pace <= cpu_end else cpu_end + work - cpu_end / self.slowdown

    def advance(self, work: float) -> None:
        queue = self._queue
        while queue and queue[0].left <= work:
            copy = queue.popleft()
            work -= copy.left
            copy.left = 0.0
        if queue:
            queue[0].left -= work
            self.left = sum([copy.left for copy in queue])
        else:
            self.left = 0.0

    def expect(self) -> None:
        """Tell each copy when it is due, the link being idle otherwise."""
        due = 0.0
        for copy in self._queue:
            due += copy.left
            copy.due = due


class Residency:
    """Residents, scratch and the link; `residents[layer]` are the sets to start with, `scratch_slots` shared by all layers."""

    def __init__(self, residents: Iterable[Iterable[int]], scratch_slots: int, link: Link) -> None:
        self.link = link
        self.residents = [set(experts) for experts in residents]
        self.free_slots = scratch_slots
        self.copies = 0
        self._landing: list[dict[int, Copy]] = [{} for _ in self.residents]  # residents on their way
        self._scratch: list[dict[int, Copy | None]] = [
            {} for _ in self.residents
        ]  # None: fetched in this very layer

    def view(self, layer: int) -> ResidencyView:
        """The layer's experts as a policy sees them now."""
        scratch, landing = self._scratch[layer], self._landing[layer]
        residents = self.residents[layer]
        if not scratch and not landing:
            return ResidencyView(residents, NOTHING, self.free_slots, self.link.left)
        self.link.expect()
        on_the_way = self.unsettled(layer)
        in_flight = {expert: landing[expert].due for expert in on_the_way}
        for expert, copy in scratch.items():
            in_flight[expert] = copy.due if copy is not None and copy.left > 0 else 0.0
        return ResidencyView(
            residents - on_the_way, in_flight, self.free_slots + len(scratch), self.link.left
        )

    def unsettled(self, layer: int) -> set[int]:
        """Residents whose copy has not landed yet."""
        landing = self._landing[layer]
        if landing:
            landing = self._landing[layer] = {
                expert: copy for expert, copy in landing.items() if copy.left > 0
            }
        return set(landing)

    def scratch(self, layer: int) -> list[int]:
        """Experts in scratch slots that wait for the layer."""
        return list(self._scratch[layer])

    def demand(self, layer: int, expert: int) -> None:
        """Put an expert that the layer's own timeline copies into a scratch slot."""
        self.free_slots -= 1
        self.copies += 1
        self._scratch[layer][expert] = None

    def fetch(self, layer: int, expert: int) -> None:
        """Queue a copy into a scratch slot."""
        self.free_slots -= 1
        self.copies += 1
        self._scratch[layer][expert] = self.link.queue()

    def release(self, layer: int, expert: int) -> None:
        """Give a scratch slot back."""
        del self._scratch[layer][expert]
        self.free_slots += 1

    def swap(self, layer: int, swap: Swap) -> None:
        """Make `load` a resident in the slot of `evict`."""
        scratch, landing = self._scratch[layer], self._landing[layer]
        if swap.load in scratch:
            copy = scratch.pop(swap.load)
            self.free_slots += 1
        else:
            copy = self.link.queue()
            self.copies += 1
        if copy is not None and copy.left > 0:
            landing[swap.load] = copy
        donor = layer if swap.donor is None else swap.donor
        self.residents[donor].discard(swap.evict)
        self._landing[donor].pop(swap.evict, None)
        self.residents[layer].add(swap.load)
