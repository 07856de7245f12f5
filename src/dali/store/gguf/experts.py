"""The routed experts of a GGUF model: where each matrix lies, the layout that keeps it, and all of them into RAM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dali.errors import DaliError
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import Format
from dali.store.arena import Arena
from dali.store.experts_module import ExpertsModule
from dali.store.gguf.header import Gguf, GgufTensor, damaged
from dali.store.gguf.pack import Losses, keeps, own_format, pack_blocks
from dali.store.gguf.reader import GgufReader, Job, Reading
from dali.store.gguf.values.fields import Bytes


class Place(NamedTuple):
    """One expert's matrix: `rows` rows of a tensor from row `begin`."""

    tensor: GgufTensor
    begin: int
    rows: int


@dataclass(frozen=True)
class Loaded:
    """Experts in RAM: records [layer][expert]; and for each conversion that lost something ("Q6_K to w8") the relative L2
    error, measured on the first expert of each matrix, and of each type that its experts are in."""

    records: list[list[Tensor]]
    converted: dict[str, float]


class GgufExperts:
    """The experts of `gguf` for a model with `modules`; `blocks[layer]` is the number of MoE layer `layer`'s block.

    DaliError, naming the tensor, where one is missing or has another shape than the configuration says.
    """

    def __init__(self, gguf: Gguf, modules: Sequence[ExpertsModule], blocks: Sequence[int]) -> None:
        self.gguf = gguf
        self.modules = modules
        self.names: set[str] = set()  # of all tensors that hold experts
        self.places = [self._layer(*pair) for pair in zip(modules, blocks, strict=True)]

    def _layer(self, module: ExpertsModule, block: int) -> dict[str, list[Place]]:
        """Part of an expert -> its place for each expert."""
        places = {
            name: self._matrix(module, block, name, shape) for name, shape in module.shape.matrices.items()
        }
        if module.shape.biased:
            for name, (rows, _) in module.shape.matrices.items():
                bias = self._tensor(f"blk.{block}.ffn_{name}_exps.bias", (module.experts, rows))
                if bias.type.name != "F32":
                    raise damaged(bias.path, f"the tensor {bias.name} is in {bias.type.name}, not F32")
                places[f"{name}_bias"] = [Place(bias, expert, 1) for expert in range(module.experts)]
        return places

    def _matrix(self, module: ExpertsModule, block: int, name: str, shape: tuple[int, int]) -> list[Place]:
        """Three ways: all experts in one tensor; gate and up in one tensor, gate first; a tensor an expert (before 2024)."""
        rows, columns = shape
        prefix, experts = f"blk.{block}.ffn_", module.experts
        if name in ("gate", "up") and f"{prefix}gate_up_exps.weight" in self.gguf.tensors:
            both = self._tensor(f"{prefix}gate_up_exps.weight", (experts, 2 * rows, columns))
            first = rows if name == "up" else 0
            return [Place(both, expert * 2 * rows + first, rows) for expert in range(experts)]
        if f"{prefix}{name}.0.weight" in self.gguf.tensors:
            return [
                Place(self._tensor(f"{prefix}{name}.{expert}.weight", (rows, columns)), 0, rows)
                for expert in range(experts)
            ]
        tensor = self._tensor(f"{prefix}{name}_exps.weight", (experts, rows, columns))
        return [Place(tensor, expert * rows, rows) for expert in range(experts)]

    def _tensor(self, name: str, shape: tuple[int, ...]) -> GgufTensor:
        tensor = self.gguf.tensors.get(name)
        if tensor is None:
            raise damaged(self.gguf.path, f"it lacks the tensor {name}")
        if tensor.shape != shape:
            raise damaged(
                tensor.path, f"the tensor {name} is {list(tensor.shape)}, its metadata says {list(shape)}"
            )
        self.names.add(name)
        return tensor

    def layouts(self, format: Format | None) -> list[ExpertLayout]:
        """Each layer's layout: all in `format`, or for None what keeps each matrix as it is in the file."""
        return [self._layout(*pair, format) for pair in zip(self.modules, self.places, strict=True)]

    @staticmethod
    def _layout(module: ExpertsModule, places: dict[str, list[Place]], format: Format | None) -> ExpertLayout:
        shape: ExpertShape = module.shape
        if format is not None:
            return ExpertLayout(shape, format)
        return ExpertLayout.mixed(
            shape, {name: own_format(places[name][0].tensor.type) for name in shape.matrices}
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the experts in the file."""
        return sum(self.gguf.tensors[name].nbytes for name in self.names)

    def _allocate(self, layouts: Sequence[ExpertLayout]) -> list[list[Tensor]]:
        """Empty records [layer][expert]: one arena where all are of one size."""
        sizes = [layout.record_bytes for layout in layouts]
        experts = self.modules[0].experts
        if len(set(sizes)) == 1:
            return Arena(len(sizes) * experts, sizes[0]).by_layer(len(sizes))
        return [Arena(experts, size).by_layer(1)[0] for size in sizes]

    def read(self, layouts: Sequence[ExpertLayout]) -> Reading[Loaded]:
        """All experts into RAM, in `layouts`. Its jobs raise DaliError for what cannot be held in its format."""
        records = self._allocate(layouts)
        losses = Losses()
        jobs = [
            Job(*place, partial(_pack, place, part, expert, layouts[layer], records[layer][expert], told))
            for layer, places in enumerate(self.places)
            for part, by_expert in places.items()
            for firsts in (_firsts(by_expert),)
            for expert, place in enumerate(by_expert)
            for told in (losses if expert in firsts else None,)
        ]
        in_order = [record for layer in records for record in layer]
        return Reading(jobs, lambda: Loaded(records, losses.relative()), in_order)


class OneByOne:
    """The experts of a model read one after another, to be packed in `layouts` into a store. `reader`: of the model's files."""

    def __init__(self, experts: GgufExperts, layouts: Sequence[ExpertLayout], reader: GgufReader) -> None:
        self._experts, self._layouts, self._reader = experts, layouts, reader

    def read(self, layer: int, expert: int) -> Callable[[Tensor], None]:
        """What packs an expert into a record of zeros. DaliError: its bytes cannot be read."""
        return self._packing(layer, expert, None)

    def losses(self) -> dict[str, float]:
        """What conversions lose, as Loaded has it."""
        losses = Losses()
        for layer, (layout, places) in enumerate(zip(self._layouts, self._experts.places, strict=True)):
            for expert in sorted(set().union(*(_firsts(places[part]) for part in layout.formats))):
                types = {part: places[part][expert].tensor.type for part in layout.formats}
                if not all(keeps(type, layout.formats[part]) for part, type in types.items()):
                    self._packing(layer, expert, losses)(torch.zeros(layout.record_bytes, dtype=torch.uint8))
        return losses.relative()

    def _packing(self, layer: int, expert: int, losses: Losses | None) -> Callable[[Tensor], None]:
        layout, parts = self._layouts[layer], []
        for part, places in self._experts.places[layer].items():
            parts.append((part, places[expert], np.copy(self._reader.rows(*places[expert]))))

        def pack(record: Tensor) -> None:
            for part, place, raw in parts:
                _pack(place, part, expert, layout, record, losses, raw)

        return pack


def _firsts(places: Sequence[Place]) -> set[int]:
    """The first expert in each of the types that a matrix has: one, but in files with a tensor an expert."""
    return set({place.tensor.type.name: expert for expert, place in reversed([*enumerate(places)])}.values())


def _pack(
    place: Place,
    part: str,
    expert: int,
    layout: ExpertLayout,
    record: Tensor,
    losses: Losses | None,
    raw: Bytes,
) -> None:
    """One part of one expert into its record; `losses`, if there are any, are told what that costs."""
    tensor, target = place.tensor, layout.part(record, part)
    try:
        if part.endswith("_bias"):
            bias = torch.from_numpy(raw.reshape(-1))
            if not bias.view(torch.float32).isfinite().all():
                raise DaliError("A bias is NaN or infinite.", "The model is damaged; download it again.")
            target.copy_(bias)
            return
        format = layout.formats[part]
        pack_blocks(raw, tensor.type, format, target)
        if losses is not None:
            losses.packed(raw, tensor.type, target, format)
    except DaliError as error:
        raise DaliError(
            f"Expert {expert} of {tensor.name} in {tensor.path}: {error.problem}", error.fix
        ) from error
