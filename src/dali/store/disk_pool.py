"""The pool of experts of which RAM holds a part, and a store on disk all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any
from weakref import ref

from torch import Tensor

from dali.kernels.native import ExpertCache
from dali.store.arena import Arena, populate
from dali.store.expert_pool import ExpertPool, Lease
from dali.store.packed.reader import StoreReader
from dali.telemetry import DiskCounters


@dataclass(frozen=True)
class DiskPlan:
    """`ram`: bytes that the whole process may take. `least_slots`: a token's experts of a layer, which RAM has to hold."""

    ram: int
    asked: bool  # whether somebody said so
    least_slots: int


class DiskPool(ExpertPool):
    """The experts of the store at `path`, of which slots in RAM hold as many as there is room for, whichever layers they are of.

    Steps compute what is there while the rest is read, past the page cache unless told otherwise (src/native/disk), which may
    change with every step; the answers do not depend on what that is. DamagedStore: there is no store that can be used.
    """

    bounded = True

    def __init__(self, path: Path, slots: int, most_slots: int, depth: int, plain: bool = False) -> None:
        """`slots`: those to begin with; `most_slots`: as many as `grow` may ever be asked for; `depth`: reads at a time; `plain`:
        through the page cache, where that is faster, for which the budget has room then whichever way is taken later."""
        with StoreReader(path) as reader:
            header, checksums = reader.header, reader.checksums
        self.path, self.header, self.depth, self.plain = path, header, depth, plain
        self.layouts = header.layouts
        self.records: Sequence[Any] = ()  # none has a place of its own
        self.slot_bytes = max(layout.record_bytes for layout in self.layouts)
        self._arena = Arena(most_slots, self.slot_bytes)
        places = [
            (header.record_offset(layer * header.experts), layout.record_bytes)
            for layer, layout in enumerate(self.layouts)
        ]
        self._cache = ExpertCache(
            path, header.experts, places, checksums, self._arena.all, slots, depth, not plain
        )
        handles = [self._cache.layer(layer, layout) for layer, layout in enumerate(self.layouts)]
        self._leases = [Lease(*pair) for pair in zip(self.layouts, [()] * len(handles), handles, strict=True)]

    @property
    def layers(self) -> int:
        return self.header.layers

    @property
    def experts(self) -> int:
        return self.header.experts

    @property
    def nbytes(self) -> int:
        """Bytes of RAM that all slots take."""
        return self.slots * self.slot_bytes

    @property
    def stored_bytes(self) -> int:
        return sum(layout.record_bytes * self.experts for layout in self.layouts)

    @property
    def slots(self) -> int:
        """Experts that RAM has room for."""
        return self._cache.slots

    @property
    def held(self) -> int:
        """Experts that are in RAM now."""
        return self._cache.held

    @property
    def most_slots(self) -> int:
        """Experts that it may ever have room for."""
        return len(self._arena)

    @property
    def memory(self) -> Tensor:
        """All slots: uint8 [nbytes]."""
        return self._arena.alone(0, self.slots)

    @property
    def at_once(self) -> int:
        return min(self.slots, self.experts)

    @property
    def direct(self) -> bool:
        """Whether experts are read past the page cache: as was said last, where the file system allows that."""
        return self._cache.direct

    @property
    def has_both_ways(self) -> bool:
        """Whether they may be read through the page cache, for which there is room, and past it, as the file system allows."""
        return self.plain and self._cache.reads_past

    @property
    def cached_bytes(self) -> int:
        """Bytes of the page cache that reads under way may take, at most."""
        return self.depth * self.slot_bytes if self.plain or not self._cache.reads_past else 0

    def read_past(self, direct: bool, in_steps: bool, held: bool) -> None:
        """Read past the page cache from here on, or through it; and so, for themselves, `in_steps` that decode. `held`: meanwhile
        it is not compared whether looking ahead pays. For pools that have both ways."""
        assert self.has_both_ways
        self._cache.read_past(direct, in_steps, held)

    def decoded(self) -> tuple[float, float, int] | None:
        """Of all steps so far that decode: seconds, those in which they waited for the disk, and experts that had to be read.
        None while looking ahead is compared with not doing so, when no two steps are alike."""
        return None if self._cache.compares else self._cache.decoded()

    def grow(self, slots: int) -> None:
        """Use so many slots, at most `most_slots`, from here on; never fewer than before."""
        self._cache.grow(slots)

    def prepare_memory(self, until: Callable[[], bool]) -> Thread:
        """Have the system provide the memory of all slots, for which whoever fills them first waits otherwise, on a thread that
        ends when `until` says so, or the pool has gone: it takes a core from whoever computes."""
        thread = Thread(target=_prepare, args=(ref(self), until), name="dali-memory", daemon=True)
        thread.start()
        return thread

    def rest(self) -> None:
        """Read on demand alone, from here on."""
        self._cache.rest()

    @property
    def looks_ahead(self) -> bool:
        """Whether the step that began last reads what later layers may want."""
        return self._cache.looks_ahead

    def counters(self) -> DiskCounters:
        """What steps asked for and what was read since the store was opened."""
        counted = self._cache.counters()
        return DiskCounters(**counted | {name: tuple(counted[name]) for name in ("hits", "misses")})

    def note(self, layer: int, ids: Sequence[int]) -> list[int]:
        return self._cache.note(layer, ids)

    def holds(self, layer: int, expert: int) -> bool:
        return self._cache.holds(layer, expert)

    def room(self, layer: int, ids: Sequence[int]) -> int:
        """Slots without a lease that would be left if the experts `ids` had one, too; below 0 they cannot have any yet."""
        return self._cache.room(layer, ids)

    def lease(self, layer: int, ids: Sequence[int] | None = None, noted: bool = False) -> Lease:
        """The experts `ids` of a layer, at most `at_once` with those that are leased already, in that order, once they are read;
        for None what the compiled kernels compute the layer by. StoreError: an expert cannot be read."""
        if ids is None:
            return self._leases[layer]
        held = self._cache.hold(layer, [int(expert) for expert in ids], noted)
        size = self.layouts[layer].record_bytes
        return Lease(self.layouts[layer], [self._arena.alone(slot)[:size] for slot in held.slots], held=held)


def _prepare(of: ref[DiskPool], until: Callable[[], bool]) -> None:
    """Slot by slot, in the order in which they are taken."""
    slot = 0
    while (pool := of()) is not None and slot < pool.slots and not until():
        populate(pool._arena.alone(slot))
        slot += 1
        del pool
