"""Where attention keeps latents in the place of all heads' keys and values (DeepSeek-V2 and those after it).

transformers' modules make every head's keys and values of a token's latent by one linear, and attend to those. Where
`SharedLatents` takes the place of that linear, the engine's attention keeps the latent itself and what is rotated of the keys,
and each head's query asks those.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dali.errors import DaliError
from dali.kernels import native
from dali.step.context import StepContext

LINEAR = "kv_b_proj"  # what makes keys and values of latents


class SharedLatents(nn.Module):
    """Takes the place of that linear, of a module on the CPU: notes the latents it is given, and makes nothing of them."""

    def __init__(self, heads: native.LatentHeads) -> None:
        super().__init__()
        self.heads = heads
        self._given: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Latents [..., rank] -> as many rows as the linear would answer, which only have its shape."""
        self._given = x
        rows = self.heads.heads * (self.heads.key_width + self.heads.value_width)
        return x.new_zeros(1).expand(*x.shape[:-1], rows)

    def take(self) -> Tensor:
        """The latents it was given, [tokens, rank]. DaliError if there are none."""
        given, self._given = self._given, None
        if given is None:
            raise DaliError(
                "This model's attention was given keys that no latents were noted for.",
                "Leave its modules as dali.load made them.",
            )
        return given.reshape(-1, self.heads.rank)

    def attend(
        self,
        index: int,
        query: Tensor,
        key: Tensor,
        window: int | None,
        scale: float,
        sinks: Tensor | None,
        step: StepContext,
    ) -> Tensor:
        """Layer `index`'s attention: query [heads, tokens, width], and key, of which only what is rotated counts and is the same
        in all heads, [heads, tokens, width] -> [tokens, heads, value width]."""
        kept = torch.cat([self.take(), key[0, :, self.heads.key_width :]], dim=1)
        dtype = query.dtype if query.dtype in native.ATTENTION_DTYPES else torch.float32
        query, kept = query.to(dtype), kept.to(dtype)
        out = query.new_empty(query.shape[1], self.heads.heads, self.heads.value_width)
        runs = []
        for segment in step.segments:
            rows = kept[None, segment.start : segment.start + segment.tokens]
            place = segment.state.kv(index).place(segment.start, rows, rows[..., :0], window)
            runs.append((place, segment.tokens))
        self.heads.attend(query, kept, runs, window, scale, sinks, out)
        return out


def shared_latents(module: Any) -> SharedLatents | None:
    """What an attention module keeps latents by, if it does."""
    found = getattr(module, LINEAR, None)
    return found if isinstance(found, SharedLatents) else None
