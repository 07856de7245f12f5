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

# Tokens of one sequence: the first one's row in the step, how many, and what the sequence keeps before and after them, which may be
# the same memory.
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

    def __call__(self, x: Tensor, sequences: Sequence[KeptRows]) -> Tensor:
        """x [tokens, channels], rows contiguous -> as x. A sequence keeps [width - 1, channels] of x's dtype."""
        assert x.shape[1] == self.channels and x.stride(1) == 1
        kept = (self.width - 1, self.channels)
        out = torch.empty(x.shape, dtype=x.dtype)
        library.convolve(
            self._convolution,
            x.data_ptr(),
            DTYPES[x.dtype],
            x.stride(0),
            _addresses(sequences, kept, x.dtype),
            out.data_ptr(),
        )
        return out


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

    @property
    def kept(self) -> tuple[int, int, int]:
        """Shape of what a sequence keeps, float32."""
        return self.heads, self.state, (self.width + LANES - 1) // LANES * LANES

    def __call__(
        self, x: Tensor, b: Tensor, c: Tensor, steps: Tensor, sequences: Sequence[KeptRows]
    ) -> Tensor:
        """x [tokens, heads, width], b and c [tokens, groups, state], steps [tokens, heads], each token's contiguous ->
        float32, as x."""
        assert x.shape[1:] == (self.heads, self.width) and steps.shape == (len(x), self.heads)
        assert b.shape == c.shape == (len(x), self.groups, self.state)
        found = torch.empty(x.shape, dtype=torch.float32)
        strided = [(part.data_ptr(), DTYPES[part.dtype], part.stride(0)) for part in (x, b, c, steps)]
        library.scan(self._scan, *strided, _addresses(sequences, self.kept, torch.float32), found.data_ptr())
        return found


def _addresses(
    sequences: Sequence[KeptRows], shape: tuple[int, ...], dtype: torch.dtype
) -> list[tuple[int, int, int, int]]:
    for _, _, before, after in sequences:
        for kept in (before, after):
            assert kept.shape == shape and kept.dtype == dtype and kept.is_contiguous()
    return [(row, tokens, before.data_ptr(), after.data_ptr()) for row, tokens, before, after in sequences]
