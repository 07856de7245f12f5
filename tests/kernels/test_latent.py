"""Attention to latents: what it gives, and that a token's bits do not depend on who shares its call."""

from __future__ import annotations

import pytest
import torch

from dali.kernels import native
from dali.kernels.formats import get_format
from dali.kernels.native.latent import LatentHeads

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
SHAPES = [(4, 24, 16, 8, 12), (6, 40, 20, 10, 20), (3, 64, 32, 16, 16)]  # heads, rank, and three widths


class Case:
    """Random weights and the tokens of one sequence: queries, and what is kept."""

    def __init__(self, shape, tokens, dtype=torch.float32, format="f32"):
        self.heads, self.rank, self.key_width, self.rotated, self.value_width = shape
        generator = torch.Generator().manual_seed(1)

        def random(*size):
            return torch.randn(*size, generator=generator)

        self.up = random(self.heads * (self.key_width + self.value_width), self.rank)
        self.native = LatentHeads(self.up, self.heads, self.key_width, self.value_width, get_format(format))
        self.query = random(self.heads, tokens, self.key_width + self.rotated).to(dtype)
        self.kept = random(tokens, self.rank + self.rotated).to(dtype)
        self.scale = 0.1

    def expected(self, window=None):
        """As if every head's keys and values were made: [tokens, heads, value width]."""
        latent, turned = self.kept.double().split([self.rank, self.rotated], dim=1)
        made = (latent @ self.up.double().T).view(len(latent), self.heads, -1).transpose(0, 1)
        keys = torch.cat([made[..., : self.key_width], turned.expand(self.heads, -1, -1)], dim=2)
        logits = self.query.double() @ keys.transpose(1, 2) * self.scale
        places = torch.arange(len(latent))
        seen = places[None] <= places[:, None]
        if window:
            seen &= places[None] > places[:, None] - window
        weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
        return (weights @ made[..., self.key_width :]).transpose(0, 1)

    def attend(self, chunks, window=None):
        tokens, width = self.kept.shape
        memory = torch.zeros(1, tokens + 3, width, dtype=self.kept.dtype)
        out = self.query.new_empty(tokens, self.heads, self.value_width)
        begin = 0
        for count in chunks:
            rows = slice(begin, begin + count)
            oldest = max(0, begin + 1 - window) if window else 0
            place = 0, memory.data_ptr(), 0, tokens + 3, begin, oldest, False
            self.native.attend(
                self.query[:, rows],
                self.kept[rows].contiguous(),
                [(place, count)],
                window,
                self.scale,
                None,
                out[rows],
            )
            begin += count
        assert begin == tokens
        assert torch.equal(memory[0, :tokens], self.kept)
        return out


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_as_if_keys_and_values_were_made(shape, window):
    case = Case(shape, 70)  # more than are attended to at a time
    expected = case.expected(window)
    assert (case.attend([70], window) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("dtype", "format"), [(torch.bfloat16, "f32"), (torch.bfloat16, "w8"), (torch.float32, "w8")]
)
def test_rounded(dtype, format):
    case = Case(SHAPES[2], 20, dtype, format)
    expected = case.expected()
    assert (case.attend([20]) - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("format", ["f32", "w8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_depend_on_nothing_but_the_sequence(shape, format):
    case = Case(shape, 75, format=format)
    whole = case.attend([75])
    for chunks in ([1] * 75, [7, 1, 1, 66], [64, 11]):
        assert torch.equal(case.attend(chunks), whole)


def test_several_sequences_at_once():
    one, other = Case(SHAPES[0], 9), Case(SHAPES[0], 9)
    other.query, other.kept = other.query.flip(1).contiguous(), other.kept.flip(0).contiguous()
    width = one.kept.shape[1]
    memories = [torch.zeros(1, 16, width) for _ in range(2)]
    runs = [
        ((0, memories[0].data_ptr(), 0, 16, 0, 0, False), 9),
        ((9, memories[1].data_ptr(), 0, 16, 0, 0, False), 9),
    ]
    out = torch.empty(18, one.heads, one.value_width)
    query, kept = torch.cat([one.query, other.query], dim=1), torch.cat([one.kept, other.kept])
    one.native.attend(query, kept, runs, None, one.scale, None, out)
    assert torch.equal(out, torch.cat([one.attend([9]), other.attend([9])]))
