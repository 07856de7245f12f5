"""The pool of a model's routed experts: whoever computes them or copies them asks it, each time anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dali.errors import DaliError
from dali.kernels import native
from dali.kernels.expert import ExpertLayout
from dali.kernels.native import ExpertRecords, LayerHandle


@dataclass(slots=True)
class Lease:
    """Experts whose bytes stay where they are as long as this object lives: whoever reads them keeps it until that is done.

    `records[i]` is the i-th expert that was asked for, packed in `layout`. `native` is what the compiled kernels compute by; only
    a lease of a whole layer has it, and only where those kernels serve. Of a pool on disk such a lease has no records: the
    kernels ask for those of a step as soon as its router has spoken.
    """

    layout: ExpertLayout
    records: Sequence[Tensor]
    native: LayerHandle | None = None
    ready: float = 0.0  # when the bytes are there, on the clock of a device that reads are modelled on
    held: object = None  # what keeps the bytes where they are, unless the pool itself does


class ExpertPool:
    """The experts of all MoE layers, in RAM: `records[layer][expert]`, packed in `layouts[layer]`.

    A lease costs next to nothing here, because nothing ever leaves RAM. Callers must not count on that: a pool that holds a part
    of the experts may let `lease` wait until the bytes are there, may put them elsewhere once no lease of them is left, gives no
    more than `at_once` of them together, and says by `whole_layers` whether it gives a layer as a whole.
    """

    whole_layers = True  # whether `lease` gives a layer as a whole
    bounded = False  # whether experts may leave RAM, which has room for some of them alone

    def __init__(self, layouts: Sequence[ExpertLayout], records: Sequence[Sequence[Tensor]]) -> None:
        self.layouts = layouts
        self.records = records
        compiled = native.enabled()
        self._layers = [
            Lease(layout, layer, ExpertRecords(layout, layer) if compiled else None)
            for layout, layer in zip(layouts, records, strict=True)
        ]

    @property
    def layers(self) -> int:
        """The number of MoE layers."""
        return len(self.records)

    @property
    def experts(self) -> int:
        """The number of experts of each layer."""
        return len(self.records[0])

    @property
    def nbytes(self) -> int:
        """Bytes of RAM the experts take."""
        return sum(record.nbytes for layer in self.records for record in layer)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all experts, wherever they are."""
        return self.nbytes

    @property
    def at_once(self) -> int:
        """The most experts of a layer that may be leased by their ids together."""
        return self.experts

    def __reduce_ex__(self, protocol: Any) -> Any:
        """There is one copy of a model's experts, so no copy or pickle of a model can have them, too."""
        raise DaliError(
            "This model can be neither copied nor pickled: dali holds its experts, once.",
            "Copy it before dali.attach, or load it again.",
        )

    def note(self, layer: int, ids: Sequence[int]) -> list[int]:
        """A step wants the experts `ids` of a layer, which counts as one use of each: those of them that have to be read."""
        return []

    def holds(self, layer: int, expert: int) -> bool:
        """Whether an expert is in RAM."""
        return True

    def lease(self, layer: int, ids: Sequence[int] | None = None, noted: bool = False) -> Lease:
        """The experts `ids` of a layer, in that order; for None all of them, which only a pool of `whole_layers` gives. `noted`:
        that is no use of them beside what `note` was told."""
        if ids is None:
            return self._layers[layer]
        records = self.records[layer]
        return Lease(self.layouts[layer], [records[expert] for expert in ids])
