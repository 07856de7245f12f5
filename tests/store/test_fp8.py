"""Weights in 8-bit floats against their values, block by block."""

from __future__ import annotations

import pytest
import torch

from dali.store.fp8 import dequantize


def random_fp8(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("shape", [(256, 128), (200, 130), (7, 300), (3, 140, 150)])
def test_each_block_has_its_scale(shape):
    weight, block = random_fp8(*shape), (128, 128)
    scales = torch.rand(*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    found = dequantize(weight, scales, block)
    for row in (0, shape[-2] // 2, shape[-2] - 1):
        for column in (0, shape[-1] // 2, shape[-1] - 1):
            expected = weight[..., row, column].float() * scales[..., row // 128, column // 128]
            assert torch.equal(found[..., row, column], expected)


@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5]])])
def test_one_scale_is_for_all(scale):
    weight = random_fp8(20, 30)
    assert torch.equal(dequantize(weight, scale, None), weight.float() * 0.5)


def test_one_scale_an_expert():
    weight, scales = random_fp8(2, 20, 30), torch.tensor([0.5, 2.0])
    found = dequantize(weight, scales.view(2, 1, 1), None)
    assert torch.equal(found, weight.float() * scales.view(2, 1, 1))


def test_scales_that_are_too_few():
    with pytest.raises(ValueError, match=r"\[1, 1\], expected \[2, 1\]"):
        dequantize(random_fp8(200, 100), torch.ones(1, 1), (128, 128))
