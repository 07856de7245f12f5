"""Keys and values in 8 bits: which bytes are kept, and attention to them, bit for bit as to what they stand for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from dali.kernels import native
from dali.kernels.kept_rows import dequantize, quantize, row_bytes

compiled = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
every_variant = pytest.mark.parametrize("variant", native.variants() if native.AVAILABLE else [])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
SHAPES = [(4, 4, 128, 128), (8, 1, 64, 64), (7, 1, 64, 32), (6, 2, 24, 40), (6, 3, 80, 48), (5, 5, 8, 3)]


@pytest.fixture
def use() -> Iterator[object]:
    before = native.variant()
    yield native.use
    native.use(before)


def odd_rows(width: int) -> Tensor:
    """Of every size, zeros and denormals among them."""
    torch.manual_seed(width)
    scales = torch.tensor([0, 1e-40, 1e-7, 1e-3, 1, 50, 3e4, 8e6]).view(-1, 1, 1)
    rows = torch.randn(8, 3, width) * scales
    rows[4, 0, -1] = -90.0
    return rows


def by_ggml(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One block of Q8_0, by the formula of ggml's kernels: scale and quants."""
    largest = np.abs(row).max()
    scale = np.float32(largest / np.float32(127))
    factor = np.float32(127) / largest if largest else np.float32(0)
    return np.float16(scale), np.rint(row * (factor if np.isfinite(factor) else np.float32(0))).astype(
        np.int8
    )


@pytest.mark.parametrize("width", [32, 128, 24, 40, 3])
def test_rows_are_blocks_of_q8_0(width: int) -> None:
    values = odd_rows(width)
    rows = quantize(values)
    assert rows.shape == (*values.shape[:-1], row_bytes(width))
    for row, value in zip(rows.view(-1, row_bytes(width)), values.view(-1, width), strict=True):
        for block in range(-(-width // 32)):
            columns = slice(32 * block, min(32 * block + 32, width))
            with np.errstate(over="ignore"):
                scale, quants = by_ggml(value[columns].numpy())
            assert np.array_equal(row[columns].numpy().view(np.int8), quants)
            at = width + 2 * block
            assert row[at : at + 2].numpy().tobytes() == scale.tobytes()


def test_values_are_those_of_the_gguf_package() -> None:
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    rows = quantize(odd_rows(64)[:-1].reshape(-1, 64))  # without what becomes infinite
    parts = rows[:, :64].view(-1, 2, 32), rows[:, 64:].view(-1, 2, 2)
    blocks = torch.cat([parts[1], parts[0]], dim=2).flatten(1).numpy()
    expected = quants.dequantize(blocks, GGMLQuantizationType.Q8_0)
    assert torch.equal(dequantize(rows, 64), torch.from_numpy(expected))


def test_half_a_step_is_lost_at_most() -> None:
    values = torch.randn(1000, 32)
    steps = values.abs().amax(1, keepdim=True) / 127
    lost = (dequantize(quantize(values), 32) - values).abs()
    assert float((lost / steps).max()) < 0.5 + 127 * 2**-11  # and what the scale's float16 rounds


@compiled
@every_variant
@every_dtype
@pytest.mark.parametrize("width", [128, 64, 24, 80, 3])
def test_the_kernels_keep_these_bytes(width, dtype, variant, use) -> None:
    use(variant)
    new = odd_rows(width).to(dtype)
    new[5, 1, 0], new[6, 2, width // 2] = torch.nan, torch.inf
    heads, tokens = new.shape[:2]
    kept = torch.zeros(2, heads, tokens + 2, row_bytes(width), dtype=torch.uint8)
    first = (0, kept[0].data_ptr(), kept[1].data_ptr(), tokens + 2, 1, 0, True)
    out = torch.empty(tokens, heads, width, dtype=dtype)
    native.attend_prompt(new, new, -new, first, tokens, None, 1.0, None, out)
    assert torch.equal(kept[0, :, 1 : 1 + tokens], quantize(new))
    assert torch.equal(kept[1, :, 1 : 1 + tokens], quantize(-new))
    assert not kept[:, :, 0].any()
    assert not kept[:, :, -1].any()


@compiled
@every_variant
@every_dtype
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("kept", "tokens", "window"), [(0, 1, None), (700, 1, None), (45, 37, None), (290, 20, 33)]
)
def test_attention_is_that_to_the_values_they_stand_for(
    shape, kept, tokens, window, dtype, variant, use
) -> None:
    use(variant)
    heads, kv_heads, *widths = shape
    torch.manual_seed(kept)
    old = [torch.randn(kv_heads, kept, width) for width in widths]
    new = [torch.randn(kv_heads, tokens, width).to(dtype) for width in widths]
    query, sinks = torch.randn(heads, tokens, widths[0]).to(dtype), torch.randn(heads)

    def attend(memory: list[Tensor], query: Tensor, new: list[Tensor], in_q8: bool) -> Tensor:
        oldest = max(0, kept + 1 - window) if window else 0
        first = (0, memory[0].data_ptr(), memory[1].data_ptr(), kept + tokens, kept, oldest, in_q8)
        out = torch.empty(tokens, heads, widths[1], dtype=query.dtype)
        native.attend_prompt(query, *new, first, tokens, window, 0.2, sinks, out)
        return out

    room = [
        quantize(torch.cat([before, torch.zeros(kv_heads, tokens, before.shape[2])], dim=1)) for before in old
    ]
    found = attend(room, query, new, True)
    floats = [dequantize(rows, width) for rows, width in zip(room, widths, strict=True)]
    of_new = [part[:, kept:].clone() for part in floats]
    expected = attend([part.clone() for part in floats], query.float(), of_new, False)
    assert torch.equal(found, expected.to(dtype))


@compiled
@every_variant
def test_latents_are_kept_and_asked_alike(variant, use) -> None:
    use(variant)
    heads, rank, rotated, tokens = 4, 40, 8, 70
    torch.manual_seed(0)
    from dali.kernels.formats import get_format

    made = native.LatentHeads(torch.randn(heads * (16 + 12), rank), heads, 16, 12, get_format("f32"))
    query, latents = torch.randn(heads, tokens, 16 + rotated), torch.randn(tokens, rank + rotated)

    def attend(memory: Tensor, latents: Tensor, in_q8: bool, chunks: tuple[int, ...]) -> Tensor:
        out, begin = torch.empty(tokens, heads, 12), 0
        for count in chunks:
            rows = slice(begin, begin + count)
            run = (0, memory.data_ptr(), 0, tokens, begin, 0, in_q8), count
            made.attend(query[:, rows], latents[rows].contiguous(), [run], None, 0.2, None, out[rows])
            begin += count
        return out

    bytes_of = torch.zeros(1, tokens, row_bytes(rank + rotated), dtype=torch.uint8)
    found = attend(bytes_of, latents, True, (tokens,))
    assert torch.equal(bytes_of[0], quantize(latents))
    floats = dequantize(bytes_of[0], rank + rotated)
    assert torch.equal(found, attend(torch.zeros(1, *floats.shape), floats, False, (tokens,)))
    assert torch.equal(found, attend(torch.zeros_like(bytes_of), latents, True, (1, 9, tokens - 10)))
