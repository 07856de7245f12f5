"""The GPU's kernels for heads and decoding attention, run by a stand-in for a warp: the CPU's bits."""

from __future__ import annotations

import ctypes
from typing import Any

import device_calls as calls
import pytest
import shimmed
import torch
from torch import Tensor

from dali.kernels import native

DTYPES = (torch.float32, torch.bfloat16)
NONE, HALVES, NEIGHBOURS, UNZIPPED = range(4)  # turnings
PART = 256  # keys that are summed in one go


def kept_tokens(caches: list[tuple[Tensor, Tensor]], lengths: list[tuple[int, int]], rows: list[int]) -> Any:
    """caches: of each token keys and values [kv heads, capacity, width]; lengths: places up to its own, and the first it sees."""
    each = zip(caches, lengths, rows, strict=True)
    return (calls.KeptToken * len(rows))(
        *(
            calls.KeptToken(k.data_ptr(), v.data_ptr(), k.shape[1], kept - 1, first, row)
            for (k, v), (kept, first), row in each
        )
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "key_width", "value_width", "sinks", "lengths"),
    [
        (4, 2, 64, 64, False, [(1, 0), (5, 0), (33, 20)]),
        (6, 1, 40, 24, True, [(17, 0), (2, 1)]),
        (3, 3, 13, 160, False, [(70, 0)]),
        (2, 2, 16, 32, True, [(1030, 0), (2100, 3), (9, 0)]),
        (4, 1, 128, 128, False, [(50, 0), (64, 1)]),
    ],
)
def test_decoding_attention(folder, dtype, heads, kv_heads, key_width, value_width, sinks, lengths):
    generator = torch.Generator().manual_seed(heads)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    tokens = len(lengths)
    query, keys, values = (
        random(tokens, count, width)
        for count, width in ((heads, key_width), (kv_heads, key_width), (kv_heads, value_width))
    )
    logits = torch.randn(heads, generator=generator) if sinks else None
    caches = [
        (random(kv_heads, kept + 4, key_width), random(kv_heads, kept + 4, value_width))
        for kept, _ in lengths
    ]
    expected_caches = [(k.clone(), v.clone()) for k, v in caches]
    rows = list(range(tokens))[::-1]
    places = [
        (row, k.data_ptr(), v.data_ptr(), k.shape[1], kept - 1, first, False)
        for row, (k, v), (kept, first) in zip(rows, expected_caches, lengths, strict=True)
    ]
    expected = torch.full((tokens, heads, value_width), float("nan"), dtype=dtype)
    heads_first = (each.transpose(0, 1) for each in (query, keys, values))
    native.attend(*heads_first, places, 0.3, logits, expected)

    kept = kept_tokens(caches, lengths, rows)
    parts = max((kept - 1 - first) // PART + 1 for kept, first in lengths) + 1  # one too many
    items = tokens * heads * parts
    scratch = [torch.full((items, width), float("nan")) for width in (PART, 1, 1, value_width)]
    kernels = shimmed.common(folder)
    turn = turn_call((query, keys, values), kept)
    shimmed.run(kernels.run_turn, turn, tokens * (heads + 2 * kv_heads))
    panelled = value_width % 32 == 0
    for out_wanted, panel_wanted in ((True, False), (True, True), (False, True)):
        out, memory = torch.full_like(expected, float("nan")), shimmed.Memory(tokens, heads * value_width)
        call = calls.AttendCall(
            *(t.data_ptr() for t in (query, keys, values)),
            out.data_ptr() if out_wanted else None,
            ctypes.addressof(kept),
            None if logits is None else logits.data_ptr(),
            *(t.data_ptr() for t in scratch),
            memory.panel if panelled and panel_wanted else calls.Panel(),
            *(tokens, parts, heads, kv_heads, key_width, value_width, shimmed.DTYPES[dtype], 0.3),
        )
        shimmed.run(kernels.run_attend, call, items)
        shimmed.run(kernels.run_merge, call, tokens * heads)
        assert not out_wanted or shimmed.same_bits(out, expected)
        if panelled and panel_wanted:
            assert memory.same_as(shimmed.gathered(expected.flatten(1), heads * value_width, folder))
    for ours, theirs in zip(caches, expected_caches, strict=True):
        assert all(map(shimmed.same_bits, ours, theirs))


def turn_call(heads_of: tuple[Tensor, Tensor, Tensor], kept: Any, **fields: Any) -> calls.TurnCall:
    """Nothing but keeping, unless fields say more."""
    query, keys, values = heads_of
    call = calls.TurnCall(
        *(each.data_ptr() for each in heads_of),
        ctypes.addressof(kept),
        tokens=len(kept),
        heads=query.shape[1],
        kv_heads=keys.shape[1],
        key_width=keys.shape[2],
        value_width=values.shape[2],
        dtype=shimmed.DTYPES[query.dtype],
        value_scale=1,
    )
    for name, value in fields.items():
        setattr(call, name, value)
    return call


def turned(x: Tensor, turning: int, width: int, cos: Tensor, sin: Tensor) -> Tensor:
    """x [rows, heads, head width], the first `width` values rotated as src/native/model/attention_module.cpp does."""
    if turning == NONE:
        return x
    half, dtype, own = width // 2, x.dtype, cos.dtype == x.dtype
    if turning == NEIGHBOURS:
        cos, sin = (each[:, :half].repeat_interleave(2, 1) for each in (cos, sin))
    elif cos.shape[1] == half:
        cos, sin = torch.cat((cos, cos), 1), torch.cat((sin, sin), 1)
    cos, sin = (each.float()[:, None] for each in (cos, sin))
    some = x[..., :width].float()
    if turning == UNZIPPED:
        some = torch.cat((some[..., ::2], some[..., 1::2]), -1)
    if turning == NEIGHBOURS:
        other = torch.stack((-some[..., 1::2], some[..., ::2]), -1).flatten(-2)
    else:
        other = torch.cat((-some[..., half:], some[..., :half]), -1)
    products = some * cos, other * sin
    if own:
        products = tuple(product.to(dtype).float() for product in products)
    return torch.cat(((products[0] + products[1]).to(dtype), x[..., width:]), -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("turning", [NONE, HALVES, NEIGHBOURS, UNZIPPED])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "value_width", "rotated", "halved", "norms", "follow", "scale"),
    [
        (4, 2, 64, 64, 64, False, "both", False, 1.0),
        (3, 3, 40, 24, 16, True, "both", True, 0.7),
        (5, 1, 256, 33, 256, True, "none", False, 1.0),
        (2, 1, 300, 16, 64, False, "keys", True, 1.3),
    ],
)
def test_heads_are_normed_rotated_and_kept(
    folder, dtype, turning, heads, kv_heads, width, value_width, rotated, halved, norms, follow, scale
):
    generator = torch.Generator().manual_seed(width)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    tokens = 3
    rotary_dtype = torch.float32 if norms == "keys" else dtype
    shapes = (heads, width), (kv_heads, width), (kv_heads, value_width)
    query, keys, values = (random(tokens, *shape) for shape in shapes)
    angles = torch.randn(tokens, rotated // 2 if halved else rotated, generator=generator)
    cos, sin = angles.cos().to(rotary_dtype), angles.sin().to(rotary_dtype)
    query_weight = random(width) if norms == "both" else None
    key_weight = random(width) if norms != "none" else None

    def expected(x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return turned(x, turning, rotated, cos, sin)
        if follow:
            return native.rms_norm(turned(x, turning, rotated, cos, sin), weight, 1e-6)
        return turned(native.rms_norm(x, weight, 1e-6), turning, rotated, cos, sin)

    wanted_query, wanted_keys = expected(query, query_weight), expected(keys, key_weight)
    wanted_values = values if scale == 1 else (values.float() * scale).to(dtype)
    before = keys.clone(), values.clone()
    lengths, rows = [(3, 0), (1, 0), (5, 2)], [2, 0, 1]
    caches = [tuple(random(kv_heads, 6, of) for of in (width, value_width)) for _ in rows]
    untouched = [tuple(one.clone() for one in cache) for cache in caches]
    kept = kept_tokens(caches, lengths, rows)
    parts = [calls.NormPart(None if of is None else of.data_ptr(), 1e-6) for of in (query_weight, key_weight)]
    call = turn_call(
        (query, keys, values),
        kept,
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        query_norm=parts[0],
        key_norm=parts[1],
        norms_follow=int(follow),
        turning=turning,
        turned=rotated,
        given=cos.shape[1],
        rotary_dtype=shimmed.DTYPES[rotary_dtype],
        value_scale=scale,
    )
    shimmed.run(shimmed.common(folder).run_turn, call, tokens * (heads + 2 * kv_heads))
    assert shimmed.same_bits(query, wanted_query)
    assert shimmed.same_bits(keys, before[0])
    assert shimmed.same_bits(values, before[1])
    for cache, old, (length, _), row in zip(caches, untouched, lengths, rows, strict=True):
        for found, was, wanted in zip(cache, old, (wanted_keys[row], wanted_values[row]), strict=True):
            was[:, length - 1] = wanted
            assert shimmed.same_bits(found, was)
