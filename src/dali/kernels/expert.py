"""One packed expert: its matrices, their place inside the record, packing and unpacking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dali.kernels.activation import Activation
from dali.kernels.packed import Format, expert_matrices, expert_parts, record_bytes
from dali.kernels.packing import pack, require_finite, unpack


@dataclass(frozen=True)
class ExpertWeights:
    """An expert's float matrices: gate and up [intermediate, hidden], down [hidden, intermediate].

    A bias has one value a row of its matrix. `gate` is None for experts without a gate, biases are None for
    experts without biases.
    """

    gate: Tensor | None
    up: Tensor
    down: Tensor
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None


@dataclass(frozen=True)
class ExpertShape:
    """What all experts of a layer share. Sizes in elements."""

    hidden: int
    intermediate: int
    activation: Activation
    gated: bool = True
    biased: bool = False

    @cached_property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Name -> (rows, columns), in the order a kernel walks them."""
        return expert_matrices(self.hidden, self.intermediate, self.gated)

    @property
    def parameters(self) -> int:
        """Weights and biases of one expert."""
        return sum(rows * (columns + self.biased) for rows, columns in self.matrices.values())


@dataclass(frozen=True)
class ExpertLayout:
    """A record of one expert: its packed matrices, then their float32 biases, each 128-byte aligned.

    `format` is that of all matrices but those `exceptions` names; ask `formats` for one matrix's.
    """

    shape: ExpertShape
    format: Format
    exceptions: tuple[tuple[str, Format], ...] = ()

    @classmethod
    def mixed(cls, shape: ExpertShape, formats: Mapping[str, Format]) -> ExpertLayout:
        """A layout with a format for each matrix, by name."""
        exceptions = tuple((name, formats[name]) for name in shape.matrices if formats[name] != formats["up"])
        return cls(shape, formats["up"], exceptions)

    @cached_property
    def formats(self) -> dict[str, Format]:
        """Matrix -> its format."""
        return dict.fromkeys(self.shape.matrices, self.format) | dict(self.exceptions)

    @property
    def format_name(self) -> str:
        """What the experts are packed in, for people: "w8", or "w4 (down w8)"."""
        exceptions = ", ".join(f"{name} {format.name}" for name, format in self.exceptions)
        return f"{self.format.name} ({exceptions})" if exceptions else self.format.name

    @cached_property
    def offsets(self) -> dict[str, tuple[int, int]]:
        """Part -> (offset, bytes)."""
        return expert_parts(self.shape.matrices, self.formats, self.shape.biased)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes a kernel reads to compute this expert."""
        return sum(size for _, size in self.offsets.values())

    @cached_property
    def record_bytes(self) -> int:
        """Bytes the record takes on disk and in RAM, a multiple of 4096."""
        return record_bytes(self.offsets)

    def pack(self, weights: ExpertWeights, record: Tensor) -> None:
        """Write `weights` into `record`, uint8 [record_bytes]; padding becomes zero.

        DaliError for weights the format cannot hold; biases are held to the same, though they stay float32.
        """
        record.zero_()
        for name, (offset, size) in self.offsets.items():
            part = getattr(weights, name)
            assert part is not None, f"expert has no {name}"
            if part.dim() == 2:
                packed = pack(part, self.formats[name])
            else:
                require_finite(part, part, self.formats[name.removesuffix("_bias")])
                packed = part.to(torch.float32).contiguous().view(torch.uint8)
            record[offset : offset + size] = packed

    def part(self, record: Tensor, name: str) -> Tensor:
        """The bytes of one part of a record: a view, uint8."""
        offset, size = self.offsets[name]
        return record[offset : offset + size]

    def unpack(self, record: Tensor) -> ExpertWeights:
        """Read a record back as float32 weights."""
        parts: dict[str, Tensor | None] = dict.fromkeys(("gate", "up", "down"))
        for name, (rows, columns) in self.shape.matrices.items():
            parts[name] = unpack(self.part(record, name), rows, columns, self.formats[name])
            if self.shape.biased:
                parts[f"{name}_bias"] = self.part(record, f"{name}_bias").view(torch.float32)
        return ExpertWeights(**parts)  # type: ignore[arg-type]  # up and down are always there
