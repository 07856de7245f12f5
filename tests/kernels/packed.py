"""Random packed matrices and experts of any format, also of those that nothing is quantized to."""

from __future__ import annotations

import torch
from torch import Tensor

from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import GROUP, TILE_ROWS, Format, ScalePart, assemble, round_up
from dali.kernels.packing import QUANTIZERS, pack


def random_matrix(rows: int, columns: int, format: Format, seed: int = 0) -> Tensor:
    """Packed bytes [rows, columns] of values of about 1 / sqrt(columns); of rows and columns of padding anything."""
    generator = torch.Generator().manual_seed(seed)
    if not format.quantized or format.name in QUANTIZERS:
        return pack(torch.randn(rows, columns, generator=generator) / columns**0.5, format)
    padded, wide = round_up(rows, TILE_ROWS), round_up(columns, format.block)
    end = 256 if format.coded else 2**format.bits
    quants = torch.randint(0, end, (padded, wide // GROUP, format.group_width), generator=generator)
    unit = columns**-0.5 / 2**format.bits / (64 if format.block > GROUP else 1)

    def part(of: ScalePart) -> Tensor:
        shape = padded, wide // format.block * of.values
        if of.dtype == torch.float16:
            return (torch.rand(shape, generator=generator) * 2 - 1).mul_(unit).to(of.dtype)
        if of.dtype == torch.int16:
            return torch.randint(-(2**15), 2**15, shape, generator=generator).to(of.dtype)
        end = 16 if format.name == "nvfp4" else 256  # small floats of 8 bits, else any
        return torch.randint(0, end, shape, generator=generator).to(torch.uint8).view(of.dtype)

    return assemble(quants.to(torch.uint8), [part(of) for of in format.scales], format)


def random_records(layout: ExpertLayout, experts: int, seed: int = 0) -> Tensor:
    """Packed experts, uint8 [experts, record_bytes]."""
    generator = torch.Generator().manual_seed(seed)
    records = torch.zeros(experts, layout.record_bytes, dtype=torch.uint8)
    for record in records:
        for name, (rows, columns) in layout.shape.matrices.items():
            drawn = int(torch.randint(2**31, (), generator=generator))
            layout.part(record, name).copy_(random_matrix(rows, columns, layout.formats[name], drawn))
            if layout.shape.biased:
                biases = layout.part(record, f"{name}_bias").view(torch.float32)
                biases.copy_(torch.randn(rows, generator=generator))
    return records
