"""What a layer keeps that each token overwrites: a convolution's window, a linear attention's matrix (see step/state.py)."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor


class RecurrentState:
    """One tensor of one layer, zeros at first. A subclass for each use, as a layer may keep several.

    A step reads one buffer and writes the other, so that it can be taken back; further back are copies of some places.
    """

    def __init__(self) -> None:
        self.tokens = 0  # seen
        self._before: int | None = None  # tokens seen when the last step began, if it can be taken back
        self._now: Tensor | None = None
        self._then: Tensor | None = None  # as it was at `_before`
        self._copies: dict[int, Tensor] = {}

    @property
    def nbytes(self) -> int:
        return sum(
            buffer.nbytes for buffer in (self._now, self._then, *self._copies.values()) if buffer is not None
        )

    @property
    def copy_bytes(self) -> int:
        """Memory that a copy takes."""
        return 0 if self._now is None else self._now.nbytes

    @property
    def kept(self) -> list[Tensor]:
        return [] if self._now is None else [self._now]

    def advance(
        self,
        tokens: int,
        places: Collection[int],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> tuple[Tensor, Tensor, list[tuple[int, Tensor]]]:
        """Go on by `tokens`: what to read, what to write, of this shape, and copies to make on the way: (of it after how many of
        the tokens, where) each, in order. The caller computes all of the step's tokens from the first, and leaves the result in
        the second and what it is at `places` in the copies."""
        if self._now is None or self._then is None:
            self._now, self._then = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        begin, end = self.tokens, self.tokens + tokens
        if begin in places and begin not in self._copies:
            self._copies[begin] = self._now.clone()
        inside = sorted(place for place in places if begin < place < end)
        self._copies |= {place: torch.empty_like(self._now) for place in inside}
        # Together: Ctrl-C must not leave one without the others.
        self._before, self.tokens, self._now, self._then = begin, end, self._then, self._now
        return self._then, self._now, [(place - begin, self._copies[place]) for place in inside]

    def forget(self, places: Collection[int]) -> None:
        """Keep copies of these places alone."""
        self._copies = {place: copy for place, copy in self._copies.items() if place in places}

    def nearest(self, tokens: int) -> int | None:
        places = [*self._copies, self.tokens] + ([] if self._before is None else [self._before])
        return max((place for place in places if place <= tokens), default=None)

    @torch.inference_mode()
    def rollback(self, tokens: int) -> None:
        self._copies = {place: copy for place, copy in self._copies.items() if place <= tokens}
        if tokens == self.tokens:
            return
        if tokens == self._before:
            self._before, self.tokens, self._now, self._then = None, tokens, self._then, self._now
            return
        assert self._now is not None
        if (
            self._before is not None and tokens < self._before
        ):  # else the step can still be taken back as a whole
            self._before = None
        self._now.copy_(self._copies[tokens])
        self.tokens = tokens

    @torch.inference_mode()
    def at(self, place: int) -> Tensor | None:
        """A copy of what it was at a place, which nobody changes; None where it does not know."""
        if place in self._copies:
            return self._copies[place]
        now = {self.tokens: self._now, self._before: self._then}.get(place)
        return None if now is None else now.clone()

    @torch.inference_mode()
    def resume(self, place: int, kept: Tensor, device: torch.device) -> None:
        """Begin anew as it was at a place."""
        self._before, self._copies = None, {}
        self._now = torch.empty_like(kept, device=device).copy_(kept)
        self._then, self.tokens = torch.empty_like(self._now), place
