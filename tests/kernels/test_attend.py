"""Attention of decoding tokens: against the formula, on any number of threads, in parts and with widths no vector divides."""

from __future__ import annotations

import pytest
import torch

from dali.kernels import native

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
SHAPES = [  # heads, heads of keys, width of keys, of values
    (4, 4, 128, 128),
    (32, 4, 64, 64),
    (7, 1, 64, 64),
    (6, 2, 24, 40),
    (12, 4, 192, 128),
    (5, 5, 8, 3),
]
PLACES = [(0, 0), (5, 2), (36, 0), (1023, 0), (1024, 0), (3000, 900)]  # of the token, of the first it sees


def attend(query, key, value, keys, values, place, first, scale, sinks=None):
    out = torch.empty(1, query.shape[0], value.shape[-1], dtype=query.dtype)
    token = (0, keys.data_ptr(), values.data_ptr(), keys.shape[1], place, first, False)
    native.attend(query, key, value, [token], scale, sinks, out)
    return out[0]


def by_the_formula(query, keys, values, place, first, scale, sinks):
    group = len(query) // len(keys)
    seen = slice(first, place + 1)
    keys, values = (x[:, seen].double().repeat_interleave(group, dim=0) for x in (keys, values))
    scores = (keys @ query.double().transpose(1, 2)).squeeze(2) * scale
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None]], dim=1)
    weights = scores.softmax(dim=1)[:, : keys.shape[1]]
    return (weights[:, None] @ values).squeeze(1)


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_the_formula_on_any_number_of_threads(shape, dtype, close, with_sinks):
    heads, kv_heads, key_width, value_width = shape
    before = native.threads()
    torch.manual_seed(0)
    for place, first in PLACES:
        keys, values = (torch.randn(kv_heads, place + 5, w).to(dtype) for w in (key_width, value_width))
        query = torch.randn(heads, 1, key_width).to(dtype)
        key, value = (torch.randn(kv_heads, 1, w).to(dtype) for w in (key_width, value_width))
        sinks = torch.randn(heads) if with_sinks else None
        found = []
        try:
            for threads in (1, 2, 3):
                native.set_threads(threads)
                found.append(attend(query, key, value, keys, values, place, first, key_width**-0.5, sinks))
        finally:
            native.set_threads(before)
        assert torch.equal(keys[:, place], key[:, 0])
        assert torch.equal(values[:, place], value[:, 0])
        assert all(torch.equal(found[0], other) for other in found)
        expected = by_the_formula(query, keys, values, place, first, key_width**-0.5, sinks)
        assert torch.allclose(found[0].double(), expected, rtol=0, atol=close)


@pytest.mark.parametrize("place", [20, 2000])
def test_what_is_no_number_stays_none(place):
    keys, values = torch.randn(1, place + 1, 32), torch.randn(1, place + 1, 32)
    keys[0, 3, 0] = torch.nan
    new = torch.randn(1, 1, 32)
    assert attend(torch.randn(2, 1, 32), new, new, keys, values, place, 0, 1.0).isnan().all()


def test_one_score_far_above_all_others_takes_all_weight():
    place = 2000
    keys, values = torch.zeros(1, place + 1, 16), torch.randn(1, place + 1, 16)
    keys[0, 7] = 100.0
    new = torch.zeros(1, 1, 16)
    found = attend(torch.ones(1, 1, 16), new, new, keys, values, place, 0, 1.0)
    assert torch.equal(found[0], values[0, 7])


@pytest.mark.parametrize("place", [7, 1024])  # in a part with others, alone in its own
def test_a_score_of_minus_infinity_weighs_nothing(place):
    keys, values = torch.zeros(1, place + 1, 16), torch.randn(1, place + 1, 16)
    new = torch.zeros(1, 1, 16)
    new[0, 0, 0] = -torch.inf
    found = attend(torch.ones(2, 1, 16), new, torch.randn(1, 1, 16), keys, values, place, 0, 1.0)
    assert torch.allclose(found, values[:, :place].mean(dim=1).expand(2, 16), atol=1e-6)


def test_equal_scores_give_the_mean():
    place = 1500
    keys, values = torch.zeros(1, place + 1, 16), torch.randn(1, place + 1, 16)
    new = torch.zeros(1, 1, 16)
    found = attend(torch.ones(3, 1, 16), new, new, keys, values, place, 0, 1.0)
    assert torch.allclose(found, values.mean(dim=1).expand(3, 16), atol=1e-6)


@pytest.mark.parametrize("variant", native.variants() if native.AVAILABLE else [])
@pytest.mark.parametrize("shape", [*SHAPES, (8, 1, 24, 40), (16, 1, 128, 80)])
def test_bfloat16_has_the_bits_of_float32_rounded_at_the_end(shape, variant):
    """However many queries share a key, and whether it is read once for all of them."""
    heads, kv_heads, *widths = shape
    torch.manual_seed(0)
    kept = [torch.randn(kv_heads, 400, width).bfloat16() for width in widths]
    new = [part[:, -1:].clone() for part in kept]
    query = torch.randn(heads, 1, widths[0]).bfloat16()
    before = native.variant()
    try:
        native.use(variant)
        found = attend(query, *new, *kept, 399, 10, 0.3)
        floats = [[part.float() for part in parts] for parts in (new, kept)]
        expected = attend(query.float(), *floats[0], *floats[1], 399, 10, 0.3)
    finally:
        native.use(before)
    assert torch.equal(found, expected.bfloat16())
