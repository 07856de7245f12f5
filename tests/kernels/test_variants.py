"""Norms, routers, attention and GGUF's blocks round alike in every instruction set: the same bits from all."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from dali.kernels import native
from dali.kernels.formats import FORMATS
from dali.store.gguf.blocks import SAME_VALUES

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])

BLOCKS = {  # type: columns and bytes of a block, where its scales lie
    "Q4_0": (32, 18, (0,)),
    "Q8_0": (32, 34, (0,)),
    "Q4_1": (32, 20, (0, 2)),
    "Q5_0": (32, 22, (0,)),
    "Q5_1": (32, 24, (0, 2)),
    "Q5_K": (256, 176, (0, 2)),
    "Q6_K": (256, 210, (208,)),
    "IQ3_S": (256, 110, (0,)),
    "IQ3_XXS": (256, 98, (0,)),
    "IQ2_S": (256, 82, (0,)),
    "IQ2_XS": (256, 74, (0,)),
    "IQ1_S": (256, 50, (0,)),
}


@pytest.fixture(autouse=True)
def _variant_restored() -> Iterator[None]:
    before = native.variant()
    yield
    native.use(before)


def assert_same_bits(compute: Callable[[], list[Tensor]]) -> None:
    """From every variant that this CPU has."""
    first, *others = native.variants()
    native.use(first)
    expected = [x.contiguous().view(torch.uint8) for x in compute()]
    for variant in others:
        native.use(variant)
        found = [x.contiguous().view(torch.uint8) for x in compute()]
        assert all(map(torch.equal, found, expected)), (variant, first)


@every_dtype
@pytest.mark.parametrize(("rows", "width"), [(1, 2048), (3, 100), (40, 2048), (5, 7)])
def test_norms(rows: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = (torch.randn(rows, width) * 3).to(dtype), torch.randn(width).to(dtype)
    assert_same_bits(lambda: [native.rms_norm(x, weight, 1e-6)])


@every_dtype
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("score", "groups"), [("softmax", 1), ("sigmoid", 1), ("sigmoid", 3)])
@pytest.mark.parametrize(("tokens", "hidden", "experts"), [(1, 2048, 129), (4, 100, 15), (2, 2047, 60)])
def test_routers(
    tokens: int, hidden: int, experts: int, score: str, groups: int, normalise: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(tokens, hidden).to(dtype), (torch.randn(experts, hidden) / hidden**0.5).to(dtype)
    routing = native.Routing(4, torch.float32, score, normalise, groups=groups, kept_groups=1)
    correction = torch.randn(experts) if score == "sigmoid" else None
    router = native.Router(weight, routing, correction=correction)
    assert_same_bits(lambda: list(router(x)))


@every_dtype
@pytest.mark.parametrize(("place", "first"), [(0, 0), (5, 2), (1024, 0), (3000, 900)])
@pytest.mark.parametrize(
    "shape", [(4, 4, 128, 128), (32, 4, 64, 64), (7, 1, 64, 64), (6, 2, 24, 40), (5, 5, 8, 3)]
)
def test_attention(shape: tuple[int, int, int, int], place: int, first: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    heads, kv_heads, key_width, value_width = shape
    keys, values = (torch.randn(kv_heads, place + 2, w).to(dtype) for w in (key_width, value_width))
    key, value = (torch.randn(kv_heads, 1, w).to(dtype) for w in (key_width, value_width))
    query, sinks = torch.randn(heads, 1, key_width).to(dtype), torch.randn(heads)
    token = (0, keys.data_ptr(), values.data_ptr(), place + 2, place, first, False)

    def attend() -> list[Tensor]:
        out = torch.empty(1, heads, value_width, dtype=dtype)
        native.attend(query, key, value, [token], key_width**-0.5, sinks, out)
        return [out]

    assert_same_bits(attend)


@pytest.mark.parametrize("type", BLOCKS)
def test_blocks(type: str) -> None:
    columns, block_bytes, scales = BLOCKS[type]
    rows, blocks = 40, 4
    torch.manual_seed(0)
    raw = torch.randint(0, 256, (rows, blocks, block_bytes), dtype=torch.uint8)
    for at in scales:  # halves that are finite, and as w8 still are
        raw[:, :, at + 1] = 0x20 + (raw[:, :, at + 1] & 0x83)
    raw = raw.flatten(1)
    format = FORMATS[SAME_VALUES[type]]

    def decode() -> list[Tensor]:
        values = torch.empty(rows * blocks * columns)
        native.dequantize_blocks(raw, type, rows * blocks, values)
        packed = torch.zeros(format.matrix_bytes(rows, blocks * columns), dtype=torch.uint8)
        assert native.repack(raw, type, blocks * columns, format, packed)
        return [values, packed]

    assert_same_bits(decode)
