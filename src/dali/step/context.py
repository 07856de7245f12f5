"""What one engine step computes: the flattened row of live tokens, and whose they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from dali.step.state import SequenceState

MOST_ROWS = 12  # of a step that decodes in one native call, as many as kernels take in a pass


@dataclass(frozen=True)
class Segment:
    """One sequence's tokens in the row: rows [start, start + tokens), at positions [position, position + tokens)."""

    state: SequenceState
    start: int
    tokens: int
    position: int
    prefill: bool


class AttentionArguments(NamedTuple):
    """How a module calls its attention, beside query, key and value."""

    scale: float
    window: int | None
    sinks: Tensor | None


@dataclass
class StepContext:
    """The step a forward pass belongs to; layers' hooks and the attention read it through `current_step()`."""

    segments: list[Segment]
    longest: int  # tokens of its longest sequence, prompt still to come included
    native: bool = False  # decoding tokens attend in the compiled kernels
    attention_seconds: float = 0.0  # of torch's attention, measured
    seen: list[AttentionArguments] | None = (
        None  # attention calls note here how they were made, if there is a list
    )
    computed: object = None  # decoder layers that the first of them already ran
    masks: dict[tuple[int, int, int, int], Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Tokens of all sequences."""
        return sum(segment.tokens for segment in self.segments)

    @cached_property
    def decoding(self) -> bool:
        """Whether every sequence computes one token, or some that were drafted with it, in the compiled kernels."""
        return self.native and all(segment.tokens == 1 or not segment.prefill for segment in self.segments)

    def mask(self, segment: Segment, first_key: int, window: int | None, device: torch.device) -> Tensor:
        """Which keys each token of `segment` sees: bool [tokens, keys], keys from position `first_key` on.

        All layers of a step share one mask a segment and window.
        """
        key = (segment.start, segment.tokens, first_key, window or 0)
        if key not in self.masks:
            end = segment.position + segment.tokens
            query = torch.arange(segment.position, end, device=device)[:, None]
            keys = torch.arange(first_key, end, device=device)[None]
            seen = keys <= query
            self.masks[key] = seen & (keys > query - window) if window else seen
        return self.masks[key]


_current: ContextVar[StepContext | None] = ContextVar("dali_step", default=None)


def current_step() -> StepContext | None:
    """The running step, None outside of one."""
    return _current.get()


@contextmanager
def running(step: StepContext) -> Iterator[None]:
    token = _current.set(step)
    try:
        yield
    finally:
        _current.reset(token)
