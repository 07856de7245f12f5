"""Attention to latents, which all heads share and each makes its keys and values of."""

from __future__ import annotations

import torch
from torch import Tensor

from dali.compiled import library
from dali.kernels.formats import TILE_ROWS, Format, round_up
from dali.kernels.native.attention import DecodingToken
from dali.kernels.native.library import DTYPES
from dali.kernels.packing import pack, unpack


class LatentHeads:
    """What makes each head's key, without its rotated part, and its value of a latent: `up` [heads * (key_width + value_width),
    rank], float32, packed head by head, so that a query can ask latents themselves. DaliError for weights that `format` cannot
    hold."""

    def __init__(self, up: Tensor, heads: int, key_width: int, value_width: int, format: Format) -> None:
        self.heads, self.rank, self.key_width, self.value_width = heads, up.shape[1], key_width, value_width
        self.format = format
        each = up.view(heads, key_width + value_width, self.rank)
        keys, values = each[:, :key_width].transpose(1, 2), each[:, key_width:]
        self._packed = _pack_heads(keys, format), _pack_heads(values, format)
        matrices = (library.Matrix(format.name, *part.shape[1:]) for part in (keys, values))
        parts = [
            each for pair in zip(matrices, (p.data_ptr() for p in self._packed), strict=True) for each in pair
        ]
        self.native = library.LatentHeads(heads, self.rank, key_width, value_width, *parts)

    @property
    def up(self) -> Tensor:
        """What it was made of, as it is packed."""
        return self._unpacked(self.heads)

    def first(self) -> Tensor:
        """The same of the first head: float32 [key_width + value_width, rank]."""
        return self._unpacked(1)

    def _unpacked(self, heads: int) -> Tensor:
        keys, values = (
            unpack(part, heads * round_up(rows, TILE_ROWS), columns, self.format).view(heads, -1, columns)[
                :, :rows
            ]
            for part, rows, columns in zip(
                self._packed,
                (self.rank, self.value_width),
                (self.key_width, self.rank),
                strict=True,
            )
        )
        return torch.cat([keys.transpose(1, 2), values], dim=1).flatten(0, 1)

    def attend(
        self,
        query: Tensor,
        kept: Tensor,
        runs: list[tuple[DecodingToken, int]],
        window: int | None,
        scale: float,
        sinks: Tensor | None,
        out: Tensor,
    ) -> None:
        """Each token attends to its own sequence's latents, after its own were added to them.

        query [heads, step's tokens, key_width + rotated width]; kept [step's tokens, rank + rotated width]: latents, and what is
        rotated of keys; out [step's tokens, heads, value_width]. runs: as tokens of native.attend(), each with how many of its
        sequence follow one another, itself included; together the step's rows in order. window, sinks: as of attend_prompt().
        """
        rotated = kept.shape[1] - self.rank
        assert query.stride(2) == 1 and kept.is_contiguous() and out.is_contiguous()
        assert query.shape == (self.heads, len(kept), self.key_width + rotated)
        assert query.dtype == kept.dtype == out.dtype and out.shape == (
            len(kept),
            self.heads,
            self.value_width,
        )
        sinks = None if sinks is None else sinks.to(torch.float32).contiguous()
        library.attend_latent(
            self.native,
            DTYPES[query.dtype],
            rotated,
            scale,
            (query.data_ptr(), query.stride(1), query.stride(0)),
            kept.data_ptr(),
            0 if sinks is None else sinks.data_ptr(),
            runs,
            window or 0,
            out.data_ptr(),
        )


def _pack_heads(matrices: Tensor, format: Format) -> Tensor:
    """Matrices [heads, rows, columns], each in whole tiles."""
    heads, rows, columns = matrices.shape
    padded = torch.zeros(heads, round_up(rows, TILE_ROWS), columns)
    padded[:, :rows] = matrices
    return pack(padded.flatten(0, 1), format)
