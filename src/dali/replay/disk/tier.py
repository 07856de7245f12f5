"""Experts on disk under a replay: the pool in RAM, and the reads that fill it.

A layer's routing is known: its experts that hold a place in RAM compute; each other one is read once, those with the most to do
first, into a free place or another's, as many together as may be under way; the first ones compute while the next ones are read.
Experts in use stay until they are computed or copied. Reads ahead begin where none is demanded, and put out nobody of the layer
at work nor anybody foreseen.

A copy to the accelerator that is queued no longer needs its expert in RAM.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from dali.hardware.cost import DiskCosts, ExpertCosts
from dali.hardware.disk_lane import Lane, Read
from dali.policies.places import Expert, Places
from dali.policies.plan import LayerPlan, ResidencyView
from dali.policies.pool import PoolPolicy
from dali.policies.read_ahead import ReadAhead, ranked
from dali.replay.disk.consumers import Consumers

PAGE = 4096  # bytes: reads past the page cache are of whole ones


@dataclass
class Reads:
    """What a replay read. Lookups are active experts that have to be in RAM: `hits` were there since an earlier use, `ahead` had
    been read ahead and `late` were being read so when their layer began, `missed` had to be read then."""

    hits: int = 0
    ahead: int = 0
    late: int = 0
    missed: int = 0
    reads: int = 0
    generated_reads: int = 0  # of steps of generated tokens
    stalled: float = (
        0.0  # seconds: how much later layers of generated tokens ended than with all experts in RAM
    )

    @property
    def useful(self) -> int:
        """Reads of experts that were used."""
        return self.ahead + self.late + self.missed


class Tier:
    """The pool and its lane; `read_bytes`: of one read, in whole pages; `log`: takes every read and who made room for it."""

    def __init__(
        self,
        policy: PoolPolicy,
        disk: DiskCosts,
        read_bytes: int,
        ahead: ReadAhead | None = None,
        log: list[tuple[Read, Expert | None]] | None = None,
    ) -> None:
        self._places = Places(policy)
        self._lane = Lane(disk)
        self._bytes, self._read_seconds = read_bytes, disk.read(read_bytes)
        self.ahead = ahead
        self.counts = Reads()
        self.useful = [0] * policy.layers  # reads of experts that were used, by layer
        self._log = log
        self._coming: dict[Expert, Read] = {}  # begun and not landed yet
        self._fresh: set[Expert] = set()  # read ahead and not used yet
        self._queue: deque[Expert] = deque()  # to be read ahead
        self._foreseen: set[Expert] = set()
        self._at_work: set[Expert] = set()
        self._queued = 0.0  # when the queue was made
        self._stalled, self._reads_before = 0.0, 0  # of this step; before it
        self._seconds, self._wanted = 0.0, 0  # of all steps of generated tokens, for the trial
        self._prefill = False

    @property
    def foresees(self) -> bool:
        """Whether the step under way is to look ahead."""
        return self.ahead is not None and not self._prefill and self.ahead.on

    def holds(self, layer: int, expert: int) -> bool:
        """Whether it is in RAM."""
        return expert in self._places.held(layer) and (layer, expert) not in self._coming

    def begin(self, prefill: bool) -> None:
        """A forward step begins."""
        self._prefill = prefill
        if self.ahead is not None and not prefill:
            self.ahead.step(self._seconds, self.counts.stalled, self._wanted)

    def serve(
        self,
        layer: int,
        workload: Sequence[int],
        plan: LayerPlan,
        view: ResidencyView,
        costs: ExpertCosts,
        link_free: float,
        now: float,
    ) -> Consumers:
        """The layer's lanes, whose experts begin `now`; `link_free`: seconds until copies for other layers leave the link."""
        self.advance(now)
        needed = [*plan.cpu, *plan.fetch]
        in_ram = [0] * len(workload)
        for expert in needed:
            in_ram[expert] = workload[expert]
        self._places.observe(layer, in_ram)
        self._queue.clear()
        self._foreseen = {one for one in self._foreseen if one[0] != layer}
        consumers = Consumers(plan, workload, view, costs, link_free)
        held = self._places.held(layer)
        there = [expert for expert in needed if self.holds(layer, expert)]
        missing = sorted(
            [expert for expert in needed if expert not in held], key=consumers.tail, reverse=True
        )
        self._count(layer, needed, there, missing)
        if self.ahead is not None and not self._prefill:
            self.ahead.settle(layer, needed)
        consumers.waited = len(there) < len(needed)
        self._at_work = {(layer, expert) for expert in needed}
        self._run(layer, now, there, deque(missing), consumers)
        self._fresh -= self._at_work
        return consumers

    def _run(
        self, layer: int, now: float, there: Iterable[int], missing: deque[int], consumers: Consumers
    ) -> None:
        """The layer's events in their order: reads begin, experts arrive, and those that are done with give their places."""
        done: list[tuple[float, Expert]] = []  # a heap: who may go, and when
        stay = {(layer, expert) for expert in there} | self._coming.keys()
        for expert in there:
            heapq.heappush(done, (now + consumers.take(expert, 0.0), (layer, expert)))
        waits = len(missing) + sum([one in self._at_work for one in self._coming])
        begin = now
        while waits:
            landing = self._lane.next()
            begin = max(begin, self._lane.opens(ahead=False)) if missing else begin
            if missing and (landing is None or begin <= landing.landed):
                while done and done[0][0] <= begin:
                    stay.discard(heapq.heappop(done)[1])
                some = [(layer, expert) for expert in islice(missing, self._lane.room(begin))]
                if begun := self._begin(some, begin, stay):
                    for _ in range(begun):
                        missing.popleft()
                    continue
                if done and (landing is None or done[0][0] <= landing.landed):
                    begin = done[0][0]  # no place before somebody is done with
                    continue
            read = self._land()
            if read.expert in self._at_work:
                waits -= 1
                free = now + consumers.take(read.expert[1], max(read.landed - now, 0.0))
                heapq.heappush(done, (free, read.expert))
            else:
                stay.discard(read.expert)

    def read_ahead(
        self,
        layer: int,
        ids: Sequence[Sequence[int]],
        on_accelerator: Set[int],
        seconds: float,
        dense: float,
        now: float,
    ) -> None:
        """Queue reads for a later layer, which is foreseen to choose `ids` [tokens][top_k], in place of those that are queued.

        The layer that was just served takes `seconds`, from `now` on; `dense`: of the later one before its experts;
        `on_accelerator`: the later one's that need no reading."""
        assert self.ahead is not None
        idle = max(now + seconds + dense - max(self._lane.idle, now), 0.0)
        absent = ranked(ids, on_accelerator | self._places.held(layer))
        self._queue = deque(
            (layer, expert) for expert in self.ahead.choose(layer, absent, idle, self._read_seconds)
        )
        self._foreseen = {(layer, expert) for chosen in ids for expert in chosen}
        self._queued = now

    def stall(self, seconds: float) -> None:
        """The layer that was just served ends later by so much than with all experts in RAM."""
        self._stalled += seconds

    def end(self, seconds: float) -> None:
        """The step is over, which took so long."""
        if not self._prefill:
            self.counts.generated_reads += self.counts.reads - self._reads_before
            self.counts.stalled += self._stalled
            self._seconds += seconds
        self._reads_before, self._stalled = self.counts.reads, 0.0

    def advance(self, now: float) -> None:
        """Begin what is queued before `now`, and see what has landed."""
        while self._queue:
            at = max(self._queued, self._lane.opens(ahead=True))
            if at >= now:
                break
            self._landed(at)
            expert = self._queue.popleft()
            if expert[1] in self._places.held(expert[0]):
                continue
            if not self._begin(
                [expert], at, self._at_work | self._foreseen | self._coming.keys(), ahead=True
            ):
                self._queue.clear()
        self._landed(now)

    def _landed(self, now: float) -> None:
        while (read := self._lane.next()) is not None and read.landed <= now:
            self._land()

    def _land(self) -> Read:
        read = self._lane.take()
        del self._coming[read.expert]
        return read

    def _begin(self, experts: Sequence[Expert], at: float, stay: set[Expert], ahead: bool = False) -> int:
        """Begin reads together, the first for which there are places, which `stay` from then on; how many."""
        left: list[Expert | None] = []  # whose place each takes
        with suppress(LookupError):
            for expert in experts:
                left.append(self._places.take(expert, stay, () if ahead else self._foreseen))
                stay.add(expert)
        if not left:
            return 0
        reads = self._lane.begin(experts[: len(left)], at, self._bytes, ahead)
        for read, gone in zip(reads, left, strict=True):
            if gone is not None:
                self._fresh.discard(gone)
            if ahead:
                self._fresh.add(read.expert)
            self._coming[read.expert] = read
            if self._log is not None:
                self._log.append((read, gone))
        self.counts.reads += len(reads)
        return len(reads)

    def _count(self, layer: int, needed: Sequence[int], there: Sequence[int], missing: Sequence[int]) -> None:
        ahead = sum([(layer, expert) in self._fresh for expert in there])
        self.counts.hits += len(there) - ahead
        self.counts.ahead += ahead
        self.counts.late += len(needed) - len(there) - len(missing)
        self.counts.missed += len(missing)
        wanted = len(needed) - len(there) + ahead
        self.useful[layer] += wanted
        if not self._prefill:
            self._wanted += wanted
