"""The experts of a store on disk of which slots in memory hold a part, as compiled code reads and computes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dali.compiled import library
from dali.kernels.expert import ExpertLayout
from dali.kernels.native.experts import LayerHandle, native_layout


class ExpertCache:
    """`layers`: each one's offset in the file `path` and bytes of a record; `checksums`: XXH3 of each record, layer by layer;
    `memory`: uint8 [slots, slot bytes], page-aligned, for as many slots as there will ever be; `slots`: those to begin with;
    `depth`: reads at a time; `direct`: past the page cache, where the file system allows that. StoreError: the store cannot be
    opened."""

    def __init__(
        self,
        path: Path,
        experts: int,
        layers: Sequence[tuple[int, int]],
        checksums: Sequence[int],
        memory: Tensor,
        slots: int,
        depth: int,
        direct: bool,
    ) -> None:
        assert memory.is_contiguous() and slots <= memory.shape[0]
        assert all(size <= memory.shape[1] for _, size in layers) and len(checksums) == experts * len(layers)
        self.experts, self.memory = experts, memory
        self._cache = library.ExpertCache(
            str(path),
            experts,
            list(layers),
            list(checksums),
            memory.data_ptr(),
            memory.shape[1],
            slots,
            depth,
            direct,
            memory,
        )

    def grow(self, slots: int) -> None:
        """Use so many slots from here on; never fewer than before."""
        assert slots <= self.memory.shape[0]
        self._cache.grow(slots)

    def rest(self) -> None:
        """Read on demand alone, from here on."""
        self._cache.rest()

    @property
    def looks_ahead(self) -> bool:
        """Whether the step that began last looks ahead."""
        return bool(self._cache.looks_ahead)

    @property
    def slots(self) -> int:
        """Experts that memory may hold."""
        return int(self._cache.slots)

    @property
    def held(self) -> int:
        """Experts that it holds."""
        return int(self._cache.held)

    @property
    def direct(self) -> bool:
        """Whether reads go past the page cache, but for those of steps that `read_past` has said otherwise of."""
        return bool(self._cache.direct)

    @property
    def reads_past(self) -> bool:
        """Whether any can: whether the file system allows that."""
        return bool(self._cache.reads_past)

    def read_past(self, direct: bool, in_steps: bool, held: bool) -> None:
        """From here on reads go past the page cache, or through it, and so they do, for themselves, in steps that decode; `held`:
        looking ahead is not compared meanwhile."""
        self._cache.read_past(direct, in_steps, held)

    @property
    def compares(self) -> bool:
        """Whether looking ahead is being compared with not doing so."""
        return bool(self._cache.compares)

    def decoded(self) -> tuple[float, float, int]:
        """Of all steps so far that decode: seconds, those in which they waited for the disk, and experts that had to be read."""
        seconds, waited, wanted = self._cache.decoded()
        return seconds, waited, wanted

    def counters(self) -> dict[str, Any]:
        """What was asked for and read so far, by name."""
        return dict(self._cache.counters())

    def layer(self, layer: int, layout: ExpertLayout) -> CachedLayer:
        """What computes a layer, whose records are packed in `layout`."""
        return CachedLayer(self, layer, layout)

    def note(self, layer: int, experts: Sequence[int]) -> list[int]:
        """A step wants those experts: one use of each. Those of them that are not in memory."""
        return list(self._cache.note(layer, sorted(experts)))

    def holds(self, layer: int, expert: int) -> bool:
        """Whether an expert is in memory."""
        return bool(self._cache.holds(layer, expert))

    def room(self, layer: int, experts: Sequence[int]) -> int:
        """Slots without a lease that would be left if those experts had one, too; below 0: as many are missing."""
        return int(self._cache.room(layer, list(experts)))

    def hold(self, layer: int, experts: Sequence[int], noted: bool = False) -> Held:
        """Experts of a layer, in that order, waited for; `noted`: `note` was told of them, or they are no step's. StoreError: one
        cannot be read, or there are not as many slots."""
        return Held(self, layer, experts, noted)


class Held:
    """Experts that stay in memory as long as this object lives, in `slots`."""

    def __init__(self, cache: ExpertCache, layer: int, experts: Sequence[int], noted: bool) -> None:
        wanted = list(dict.fromkeys(experts)) if noted else sorted(set(experts))
        self._lease = library.ExpertLease(cache._cache, layer, wanted, noted)
        slots = dict(zip(wanted, self._lease.hold(len(wanted)), strict=True))
        self.slots = [slots[expert] for expert in experts]


class CachedLayer(LayerHandle):
    """A layer's experts, which its step asks the cache for once their router has spoken."""

    def __init__(self, cache: ExpertCache, layer: int, layout: ExpertLayout) -> None:
        self._cache = cache  # whose memory this needs
        super().__init__(native_layout(layout), library.ExpertRecords(cache._cache, layer, cache.experts))
