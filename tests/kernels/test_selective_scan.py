"""Selective scans: every instruction set against torch's, the same bits however a sequence's tokens are cut and whoever shares
the call."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from dali.kernels import native, recurrence

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
Scan = Callable[..., None]
CUTS = ([40], [1] * 40, [7, 33], [32, 1, 7])


@pytest.fixture(params=native.variants())
def variant(request) -> Iterator[str]:
    before = native.variant()
    native.use(request.param)
    yield request.param
    native.use(before)


class Case:
    """A scan of 40 random tokens."""

    def __init__(self, sizes: tuple[int, int, int, int], dtype: torch.dtype, skip: bool = True) -> None:
        heads, width, groups, state = sizes
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.parts = [
            random(40, *shape).to(dtype)
            for shape in ((heads, width), (groups, state), (groups, state), (heads,))
        ]
        self.parts[3][7, 0] = 30.0  # where softplus is its argument
        self.rate, self.bias = -random(heads).exp(), random(heads).to(dtype)
        self.skip = random(heads).to(dtype) if skip else None
        self.limits = 0.05, 2.0
        self.shape = recurrence.scan_state(heads, width, state)

    def __call__(self, scan: Scan, stretches: list[recurrence.Stretch], out: Tensor) -> None:
        x, b, c, steps = self.parts
        scan(x, steps, self.rate, b, c, self.skip, self.bias, self.limits, stretches, out)

    def cut(self, scan: Scan, pieces: list[int]) -> tuple[Tensor, Tensor]:
        """One sequence, piece by piece: (what it gives, what is kept after the last)."""
        out, kept = torch.empty(self.parts[0].shape), torch.zeros(self.shape)
        begin = 0
        for tokens in pieces:
            self(scan, [(slice(begin, begin + tokens), kept, kept, [])], out)
            begin += tokens
        return out, kept


SIZES = [(4, 16, 2, 16), (3, 64, 1, 128), (6, 20, 3, 18), (2, 7, 1, 5), (2, 130, 2, 9)]


@every_dtype
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_selective_scan(variant, dtype, sizes):
    case = Case(sizes, dtype)
    out, kept = case.cut(native.selective_scan, [40])
    expected, state = case.cut(recurrence.selective_scan, [40])
    # Where e^x differs in its last bit, a step may round to the next value that its dtype has.
    close = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    for ours, theirs in ((out, expected), (kept, state)):
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close * float(theirs.abs().max()))
    for cut in CUTS:
        again, after = case.cut(native.selective_scan, cut)
        assert torch.equal(again, out)
        assert torch.equal(after, kept)


def test_the_reference_does_not_depend_on_how_tokens_are_cut():
    case = Case(SIZES[2], torch.bfloat16)
    whole = case.cut(recurrence.selective_scan, [40])
    for cut in CUTS:
        assert all(map(torch.equal, case.cut(recurrence.selective_scan, cut), whole))


def test_the_reference_is_transformers():
    file = pytest.importorskip("transformers.models.nemotron_h.modeling_nemotron_h")
    if not hasattr(file, "mamba2_chunk_scan"):
        pytest.skip("of newer transformers")
    case = Case(SIZES[2], torch.float32)
    x, b, c, steps = (part[None] for part in case.parts)
    options = {"D": case.skip, "dt_bias": case.bias, "dt_softplus": True, "dt_limit": case.limits}
    expected, state = file.mamba2_chunk_scan(
        x, steps, case.rate, b, c, 8, return_final_states=True, **options
    )
    out, kept = case.cut(recurrence.selective_scan, [40])
    torch.testing.assert_close(out, expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kept[..., : x.shape[3]], state[0].transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_every_instruction_set_gives_the_same_bits():
    before, found = native.variant(), []
    case = Case(SIZES[1], torch.float32, skip=False)
    for name in native.variants():
        native.use(name)
        found.append(case.cut(native.selective_scan, [40]))
    native.use(before)
    assert all(all(map(torch.equal, each, found[0])) for each in found)


def test_sequences_that_share_a_call_do_not_meet():
    case = Case(SIZES[0], torch.float32)
    expected, state = case.cut(native.selective_scan, [12])
    out = torch.empty(case.parts[0].shape)
    kept = [torch.zeros(case.shape) for _ in range(6)]
    rows = slice(12, 32), slice(0, 12), slice(32, 40)
    case(native.selective_scan, [(*each, []) for each in zip(rows, kept[::2], kept[1::2], strict=True)], out)
    assert torch.equal(out[:12], expected[:12])
    assert torch.equal(kept[3], state)
    assert not kept[2].any()  # what was before stays


@pytest.mark.parametrize("scan", [native.selective_scan, recurrence.selective_scan])
def test_copies_of_the_state_on_the_way(scan):
    case = Case(SIZES[2], torch.float32)
    out, kept = torch.empty(case.parts[0].shape), torch.zeros(case.shape)
    states = [case.cut(scan, [tokens])[1] for tokens in (5, 39)]
    copies = [(tokens, torch.full(case.shape, torch.nan)) for tokens in (5, 39)]
    case(scan, [(slice(0, 40), kept, kept, copies)], out)
    expected, after = case.cut(scan, [40])
    assert torch.equal(out, expected)
    assert torch.equal(kept, after)
    assert all(torch.equal(found, wanted) for (_, found), wanted in zip(copies, states, strict=True))
