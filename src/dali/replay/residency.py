"""Where every expert is during a replay: the rules of runtime.residency on plain numbers, and the link's queue.

A layer keeps its residents; demanded and prefetched experts pass through scratch slots, which all layers share. A swap whose
expert sits in scratch exchanges two slots' roles; any other copies, and its expert counts as resident once the copy has landed.
A copy that nobody waits for any more still has its turn on the link.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from types import MappingProxyType

from dali.policies.cache import Swap
from dali.policies.plan import ResidencyView

NOTHING: Mapping[int, float] = MappingProxyType({})


class Link:
    """Copies one after another; they progress at the contended pace while the CPU computes. Its clock is the work it has done,
    in seconds of an idle link, and a copy is known by the time on that clock when it has landed."""

    def __init__(self, alone: float, contended: float) -> None:
        self.alone = alone
        self.slowdown = contended / alone
        self.done = self._queued = 0.0

    @property
    def left(self) -> float:
        """Seconds of all copies queued."""
        return self._queued - self.done

    def queue(self) -> float:
        """A new copy."""
        self._queued += self.alone
        return self._queued

    def work(self, seconds: float, cpu_end: float) -> float:
        """What the link gets done in the first `seconds` of a layer, in seconds of an idle one."""
        busy = min(seconds, cpu_end)
        return busy / self.slowdown + seconds - busy

    def elapsed(self, work: float, cpu_end: float) -> float:
        """Seconds from the layer's start until that much is done: the inverse."""
        at_contended_pace = work * self.slowdown
        return at_contended_pace if at_contended_pace <= cpu_end else cpu_end + work - cpu_end / self.slowdown

    def advance(self, work: float) -> None:
        self.done = min(self.done + work, self._queued)


class Residency:
    """Residents, scratch and the link; `residents`: each layer's to start with; `scratch_slots`: shared by all layers."""

    def __init__(self, residents: Iterable[Iterable[int]], scratch_slots: int, link: Link) -> None:
        self.link = link
        self._residents = [dict.fromkeys(experts) for experts in residents]
        self.free_slots = scratch_slots
        self.copies = 0
        # Of each layer's experts that are copied: residents on their way, and those in scratch.
        self._landing: list[dict[int, float]] = [{} for _ in self._residents]
        self._scratch: list[dict[int, float]] = [{} for _ in self._residents]

    def view(self, layer: int) -> ResidencyView:
        """The layer's experts as a policy sees them now."""
        scratch, landing = self._scratch[layer], self._landing[layer]
        residents = self.residents(layer)
        if not scratch and not landing:
            return ResidencyView(residents, NOTHING, self.free_slots, self.link.left)
        on_the_way, done = self.unsettled(layer), self.link.done
        in_flight = {expert: landing[expert] - done for expert in on_the_way}
        for expert, copy in scratch.items():
            in_flight[expert] = max(copy - done, 0.0)
        return ResidencyView(
            residents - on_the_way, in_flight, self.free_slots + len(scratch), self.link.left
        )

    def residents(self, layer: int) -> Set[int]:
        """Experts that hold the layer's own slots, landed or not; changes as they do, and no policy can change it."""
        return self._residents[layer].keys()

    def unsettled(self, layer: int) -> set[int]:
        """Residents whose copy has not landed yet."""
        landing = self._landing[layer]
        if landing:
            landing = self._landing[layer] = {
                expert: copy for expert, copy in landing.items() if copy > self.link.done
            }
        return set(landing)

    def scratch(self, layer: int) -> list[int]:
        """Experts in scratch slots that wait for the layer."""
        return list(self._scratch[layer])

    def demand(self, layer: int, expert: int) -> None:
        """Put an expert that the layer's own timeline copies into a scratch slot."""
        self.free_slots -= 1
        self.copies += 1
        self._scratch[layer][expert] = self.link.done

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
        if copy > self.link.done:
            landing[swap.load] = copy
        donor = layer if swap.donor is None else swap.donor
        del self._residents[donor][swap.evict]
        self._landing[donor].pop(swap.evict, None)
        self._residents[layer][swap.load] = None
