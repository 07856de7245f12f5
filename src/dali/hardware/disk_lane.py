"""The disk lane: reads one after another on a modelled clock, a replay's or a simulated device's."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from dali.hardware.cost import DiskCosts

Expert = tuple[int, int]  # (layer, expert)


def under_way(depth: int) -> int:
    """Reads that may be under way once one ahead is begun, of `depth` at most: demanded ones are to find the others free."""
    return depth // 2 + 1


class Read(NamedTuple):
    """One expert's read, in seconds of the clock: `begun`, when its bytes begin to arrive, and when the last one has."""

    expert: Expert
    ahead: bool
    begun: float
    first: float
    landed: float


class Lane:
    """Up to `costs.depth` reads are under way at once. Each waits for the disk's latency, which those before it hide, and then
    for its bytes, one read's after another's at the full bandwidth. No read that has begun is taken back."""

    def __init__(self, costs: DiskCosts) -> None:
        self._costs = costs
        self._reads: deque[Read] = deque()  # in the order they land, until they are taken
        self._landings: deque[float] = deque(maxlen=costs.depth)  # of the last reads
        self._begun = 0.0  # the last read's begin
        self.idle = 0.0  # when its last byte arrives

    def opens(self, ahead: bool) -> float:
        """When the next read can begin."""
        depth = under_way(self._costs.depth) if ahead else self._costs.depth
        room = self._landings[-depth] if len(self._landings) >= depth else 0.0
        return max(room, self._begun)

    def begin(self, expert: Expert, at: float, nbytes: int, ahead: bool) -> Read:
        """Begin a read no sooner than it `opens`."""
        first = max(at + self._costs.latency, self.idle)
        read = Read(expert, ahead, at, first, first + nbytes / self._costs.bandwidth)
        self._reads.append(read)
        self._landings.append(read.landed)
        self._begun, self.idle = at, read.landed
        return read

    def next(self) -> Read | None:
        """The read that lands next."""
        return self._reads[0] if self._reads else None

    def take(self) -> Read:
        """Forget that read."""
        return self._reads.popleft()
