"""The disk lane: reads on a modelled clock, a replay's, a simulated device's or a prediction's.

Reads that begin together share the disk, and so all of them are there when the last byte is. Whoever waits for them checks each,
which is begun by nobody else's reads meanwhile, and only then computes. So what a layer takes is

    max(what is in RAM, latency + missing x (bytes + check)) + missing x computing one

where all that are missing begin at once. Where they are more than may be under way, some are computed while the next are read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from dali.hardware.cost import DiskCosts

Expert = tuple[int, int]  # (layer, expert)


def under_way(depth: int) -> int:
    """Reads that may be under way once one ahead is begun, of `depth` at most: demanded ones are to find the others free."""
    return depth // 2 + 1


class Read(NamedTuple):
    """One expert's read, in seconds of the clock: `begun`, when its bytes begin to arrive, and when the last one has, checked."""

    expert: Expert
    ahead: bool
    begun: float
    first: float
    landed: float


class Lane:
    """Up to `costs.depth` reads are under way at once. Those that begin together wait for the disk's latency, which those before
    hide, and then for all of their bytes at the full bandwidth. No read that has begun is taken back."""

    def __init__(self, costs: DiskCosts) -> None:
        self._costs = costs
        self._reads: deque[Read] = deque()  # in the order they land, until they are taken
        self._landings: deque[float] = deque(maxlen=costs.depth)  # of the last reads
        self._begun = 0.0  # the last read's begin
        self.idle = 0.0  # when its last byte is there

    def opens(self, ahead: bool) -> float:
        """When the next read can begin."""
        depth = under_way(self._costs.depth) if ahead else self._costs.depth
        room = self._landings[-depth] if len(self._landings) >= depth else 0.0
        return max(room, self._begun)

    def room(self, at: float) -> int:
        """How many demanded reads can begin together then."""
        return self._costs.depth - sum([landed > at for landed in self._landings])

    def begin(self, experts: Sequence[Expert], at: float, nbytes: int, ahead: bool) -> list[Read]:
        """Begin reads together, of so many bytes each, no more than there is room for and no sooner than it `opens`."""
        first = max(at + self._costs.latency, self.idle)
        landed = first + len(experts) * self._costs.each(nbytes)
        reads = [Read(expert, ahead, at, first, landed) for expert in experts]
        self._reads += reads
        self._landings += [landed] * len(reads)
        self._begun, self.idle = at, landed
        return reads

    def next(self) -> Read | None:
        """The read that lands next."""
        return self._reads[0] if self._reads else None

    def take(self) -> Read:
        """Forget that read."""
        return self._reads.popleft()


def layer_seconds(costs: DiskCosts, nbytes: int, there: float, missing: int, computing: float) -> float:
    """Of a layer's experts, from when they are known: `there` seconds of computing those in RAM, while the `missing` ones, of so
    many bytes each, are read; and `computing` seconds of each of those."""
    lane, end, at = Lane(costs), there, 0.0
    for begun in range(0, missing, costs.depth):
        some = [(0, expert) for expert in range(begun, min(begun + costs.depth, missing))]
        at = lane.begin(some, at, nbytes, ahead=False)[0].landed
        end = max(end, at) + len(some) * computing
    return end
