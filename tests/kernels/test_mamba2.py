"""Mamba2's parts: every instruction set against torch's, the same bits however a sequence's tokens are cut and whoever shares the
call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dali import compiled
from dali.kernels import native, recurrence

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
CUTS = ([40], [1] * 40, [7, 33], [32, 1, 7])
FLOAT_SUMS = {"rtol": 1e-5, "atol": 1e-5}  # of float32 sums taken in another order


@pytest.fixture(params=native.variants())
def variant(request) -> Iterator[str]:
    before = compiled.variant()
    native.use(request.param)
    yield request.param
    native.use(before)


def convolved(convolution: native.Convolution, x: Tensor, cut: list[int]) -> tuple[Tensor, Tensor]:
    """x in pieces, one after another -> what it is of them, and what is kept after the last."""
    out, kept = torch.empty_like(x), torch.zeros(convolution.width - 1, x.shape[1], dtype=x.dtype)
    begin = 0
    for tokens in cut:
        rows = slice(begin, begin + tokens)
        convolution(x[rows], [(0, tokens, kept, kept)], out[rows])
        begin += tokens
    return out, kept


@every_dtype
@pytest.mark.parametrize(("channels", "width"), [(16, 4), (70, 4), (5, 3), (200, 2), (33, 1)])
def test_a_convolution(variant, dtype, channels, width):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype)
        for shape in ((40, channels), (channels, width), (channels,))
    )
    padded = F.pad(x.double().T[None], (width - 1, 0))
    plain = F.conv1d(padded, weight.double()[:, None], bias.double(), groups=channels)[0].T.to(dtype)
    close = FLOAT_SUMS if dtype == torch.float32 else {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-2}
    for silu, expected in ((False, plain), (True, F.silu(plain.float()).to(dtype))):
        convolution = native.Convolution(weight, bias, silu)
        out, kept = convolved(convolution, x, [40])
        torch.testing.assert_close(out, expected, **close)
        assert torch.equal(kept, x[40 - (width - 1) :])
        for cut in CUTS:
            assert torch.equal(convolved(convolution, x, cut)[0], out)


def test_rows_of_a_wider_matrix_are_convolved_without_a_bias():
    x = torch.randn(9, 40)
    convolution = native.Convolution(torch.randn(20, 4), None, False)
    expected, _ = convolved(convolution, x[:, 20:].contiguous(), [9])
    assert torch.equal(convolved(convolution, x[:, 20:], [9])[0], expected)


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
        self.scan = native.SelectiveScan(self.rate, self.bias, self.skip, self.limits, (width, groups, state))
        self.shape = native.scan_state(*sizes)

    def compiled(self, cut: list[int]) -> tuple[Tensor, Tensor]:
        out, kept = torch.empty(self.parts[0].shape), torch.zeros(self.shape)
        begin = 0
        for tokens in cut:
            rows = slice(begin, begin + tokens)
            self.scan(*(part[rows] for part in self.parts), [(0, tokens, kept, kept)], out[rows])
            begin += tokens
        return out, kept

    def reference(self, cut: list[int]) -> tuple[Tensor, Tensor]:
        outs, kept = [], torch.zeros(self.shape)
        for x, b, c, steps in zip(*(part.split(cut) for part in self.parts), strict=True):
            outs.append(
                recurrence.selective_scan(
                    x, steps, self.rate, b, c, self.skip, self.bias, self.limits, kept, kept
                )
            )
        return torch.cat(outs), kept


SIZES = [(4, 16, 2, 16), (3, 64, 1, 128), (6, 20, 3, 18), (2, 7, 1, 5), (2, 130, 2, 9)]


@every_dtype
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_selective_scan(variant, dtype, sizes):
    case = Case(sizes, dtype)
    out, kept = case.compiled([40])
    expected, state = case.reference([40])
    # Where e^x differs in its last bit, a step may round to the next value that its dtype has.
    close = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    for ours, theirs in ((out, expected), (kept, state)):
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close * float(theirs.abs().max()))
    for cut in CUTS:
        again, after = case.compiled(cut)
        assert torch.equal(again, out)
        assert torch.equal(after, kept)


def test_the_reference_does_not_depend_on_how_tokens_are_cut():
    case = Case(SIZES[2], torch.bfloat16)
    whole = case.reference([40])
    for cut in CUTS:
        assert all(map(torch.equal, case.reference(cut), whole))


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
    out, kept = case.reference([40])
    torch.testing.assert_close(out, expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kept[..., : x.shape[3]], state[0].transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_every_instruction_set_gives_the_same_bits():
    before, found = compiled.variant(), []
    case = Case(SIZES[1], torch.float32, skip=False)
    for name in native.variants():
        native.use(name)
        found.append(case.compiled([40]))
    native.use(before)
    assert all(all(map(torch.equal, each, found[0])) for each in found)


def test_sequences_that_share_a_call_do_not_meet():
    case = Case(SIZES[0], torch.float32)
    expected, state = case.compiled([12])
    out = torch.empty(case.parts[0].shape)
    kept = [torch.zeros(case.shape) for _ in range(6)]
    sequences = [(12, 20, kept[0], kept[1]), (0, 12, kept[2], kept[3]), (32, 8, kept[4], kept[5])]
    case.scan(*case.parts, sequences, out)
    assert torch.equal(out[:12], expected[:12])
    assert torch.equal(kept[3], state)
    assert not kept[2].any()  # what was before stays


@every_dtype
def test_a_gated_norm(variant, dtype):
    torch.manual_seed(0)
    x, gate, weight = torch.randn(9, 60), torch.randn(9, 80).to(dtype)[:, 20:], torch.rand(60).to(dtype)
    gated = x.double() * F.silu(gate.double())
    grouped = gated.view(9, 3, 20)
    normed = grouped / (grouped.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = (normed.view(9, 60) * weight.double()).float()
    out = native.gated_rms_norm(x, gate, weight, 20, 1e-5)
    torch.testing.assert_close(out, expected, **FLOAT_SUMS)
    assert torch.equal(native.gated_rms_norm(x[4:5], gate[4:5], weight, 20, 1e-5), out[4:5])


def test_silu_of_values_beyond_what_e_to_them_holds():
    gate = torch.tensor([[-1000.0, -200.0, -89.0, 0.0, 89.0, 1000.0, -torch.inf, torch.nan]])
    out = native.gated_rms_norm(torch.ones(1, 8), gate, torch.ones(8), 1, 0.0)
    assert out[0, 4:6].tolist() == [1.0, 1.0]
    assert out[0, 7].isnan()
