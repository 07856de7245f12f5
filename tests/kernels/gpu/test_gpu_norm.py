"""The GPU's norms, and what goes on from one part of a layer to the next: the bits of the CPU's parts."""

from __future__ import annotations

import device_calls as calls
import pytest
import shimmed
import torch
from torch import Tensor

from dali.kernels import native

DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 64), (5, 100), (3, 15), (2, 2049)])
def test_norms(folder, dtype, rows, width):
    generator = torch.Generator().manual_seed(width)
    x = (torch.randn(rows, width, generator=generator) * 5).to(dtype)
    weight = torch.randn(width, generator=generator).to(dtype)
    out = torch.full_like(x, float("nan"))
    pointers = x.data_ptr(), weight.data_ptr(), out.data_ptr()
    call = calls.NormCall(*pointers, rows, width, shimmed.DTYPES[dtype], 1e-5)
    shimmed.run(shimmed.common(folder).run_rms_norm, call, rows)
    assert shimmed.same_bits(out, native.rms_norm(x, weight, 1e-5))


def summed(residual: Tensor, part: Tensor | None, before: Tensor | None, scale: float) -> Tensor:
    """As decoder_layer.cpp's join()."""
    if part is None:
        return residual
    if before is not None:
        part = native.rms_norm(part, before, 1e-6)
    return residual + (part if scale == 1 else (part.float() * scale).to(part.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "width", "columns"), [(1, 64, 64), (3, 100, 256), (40, 15, 32), (2, 2049, 2304)]
)
@pytest.mark.parametrize(
    ("parted", "before", "after", "scale", "chosen"),
    [
        (True, False, True, 1.0, False),
        (True, True, True, 0.22, False),
        (True, True, False, 1.0, True),
        (False, False, True, 1.0, True),
    ],
)
def test_a_sum_and_its_norm(folder, dtype, rows, width, columns, parted, before, after, scale, chosen):
    generator = torch.Generator().manual_seed(width)

    def random(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) * 3).to(dtype)

    residual, part = random(rows + 2, width), random(rows + 2, width) if parted else None
    before_weight, after_weight = (random(width) if wanted else None for wanted in (before, after))
    chosen_rows = torch.randint(0, rows + 2, (rows,), generator=generator).int() if chosen else None
    picked = slice(0, rows) if chosen_rows is None else chosen_rows.long()
    wanted_sum = summed(
        residual[picked].contiguous(),
        None if part is None else part[picked].contiguous(),
        before_weight,
        scale,
    )
    wanted = wanted_sum if after_weight is None else native.rms_norm(wanted_sum, after_weight, 1e-5)
    wanted_panel = shimmed.gathered(wanted, columns, folder)

    for in_place in (False, True) if chosen_rows is None else (False,):
        base = residual.clone()
        sums, outs = (
            (base if in_place else torch.full((rows, width), float("nan"), dtype=dtype)) for _ in range(2)
        )
        for sum_at, out_at, panelled in (
            (True, not in_place, True),
            (False, True, False),
            (False, False, True),
        ):
            base.copy_(residual)
            memory = shimmed.Memory(rows, columns)
            call = calls.AddNormCall(
                base.data_ptr(),
                address(part),
                address(chosen_rows),
                sums.data_ptr() if sum_at else None,
                outs.data_ptr() if out_at else None,
                memory.panel if panelled else calls.Panel(),
                calls.NormPart(address(before_weight), 1e-6),
                calls.NormPart(address(after_weight), 1e-5),
                *(rows, width, shimmed.DTYPES[dtype], scale),
            )
            shimmed.run(shimmed.common(folder).run_add_norm, call, rows)
            assert not sum_at or shimmed.same_bits(sums[:rows], wanted_sum)
            assert not out_at or shimmed.same_bits(outs[:rows], wanted)
            assert not panelled or memory.same_as(wanted_panel)


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
