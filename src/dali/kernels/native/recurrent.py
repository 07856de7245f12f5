"""Layers with recurrent state: convolutions over a few tokens, and selective state spaces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dali.compiled import library
from dali.kernels.native.library import DTYPES
from dali.kernels.native.route import address_of

RECURRENT_DTYPES = tuple(DTYPES)
LANES = 16  # to whole numbers of which a head's state is padded

# Tokens of one sequence: the first one's row in the step, how many, and what the sequence keeps before and after them, which may
# be the same memory.
KeptRows = tuple[int, int, Tensor, Tensor]


class Convolution:
    """A causal convolution of each channel: weight [channels, width], bias [channels]; `silu`: that of it."""

    def __init__(self, weight: Tensor, bias: Tensor | None, silu: bool) -> None:
        assert weight.is_contiguous() and (bias is None or bias.is_contiguous())
        self.channels, self.width = weight.shape
        self._tensors = weight, bias
        self._convolution = library.Convolution(
            address_of(weight), address_of(bias), self.channels, self.width, silu
        )

    def __call__(self, x: Tensor, sequences: Sequence[KeptRows], out: Tensor) -> None:
        """x [tokens, channels], each token's contiguous; out, of the same dtype, of which the sequences' tokens are written. A
        sequence keeps [width - 1, channels] of that dtype."""
        assert x.shape[1] == self.channels and x.stride(1) == 1
        assert out.shape == x.shape and out.dtype == x.dtype and out.is_contiguous()
        kept = (self.width - 1, self.channels)
        library.convolve(
            self._convolution,
            x.data_ptr(),
            DTYPES[x.dtype],
            x.stride(0),
            _addresses(sequences, kept, x.dtype),
            out.data_ptr(),
        )


class SelectiveScan:
    """A selective state space as kernels.recurrence.selective_scan() has it; `rate`, `step_bias` and `skip` [heads]."""

    def __init__(
        self,
        rate: Tensor,
        step_bias: Tensor,
        skip: Tensor | None,
        limits: tuple[float, float],
        sizes: tuple[int, int, int],
    ) -> None:
        """`sizes`: of a head, groups of heads that share B and C, of these."""
        assert all(part is None or part.is_contiguous() for part in (rate, step_bias, skip))
        self.heads, (self.width, self.groups, self.state) = len(rate), sizes
        self._tensors = rate, step_bias, skip
        per_head = address_of(rate), address_of(step_bias), address_of(skip)
        self._scan = library.SelectiveScan((self.heads, *sizes), per_head, limits)

    def __call__(
        self, x: Tensor, b: Tensor, c: Tensor, steps: Tensor, sequences: Sequence[KeptRows], out: Tensor
    ) -> None:
        """x [tokens, heads, width], b and c [tokens, groups, state], steps [tokens, heads], each token's contiguous; out float32,
        as x, of which the sequences' tokens are written. A sequence keeps what scan_state() says."""
        assert out.shape == x.shape and out.dtype == torch.float32 and out.is_contiguous()
        assert x.shape[1:] == (self.heads, self.width) and steps.shape == (len(x), self.heads)
        assert b.shape == c.shape == (len(x), self.groups, self.state)
        strided = [(part.data_ptr(), DTYPES[part.dtype], part.stride(0)) for part in (x, b, c, steps)]
        kept = scan_state(self.heads, self.width, self.groups, self.state)
        library.scan(self._scan, *strided, _addresses(sequences, kept, torch.float32), out.data_ptr())


def scan_state(heads: int, width: int, groups: int, state: int) -> tuple[int, int, int]:
    """Shape of what a sequence keeps of a selective state space: float32 [heads, state, width padded]."""
    return heads, state, (width + LANES - 1) // LANES * LANES


def _addresses(
    sequences: Sequence[KeptRows], shape: tuple[int, ...], dtype: torch.dtype
) -> list[tuple[int, int, int, int]]:
    for _, _, before, after in sequences:
        for kept in (before, after):
            assert kept.shape == shape and kept.dtype == dtype and kept.is_contiguous()
    return [(row, tokens, before.data_ptr(), after.data_ptr()) for row, tokens, before, after in sequences]
