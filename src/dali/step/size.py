"""How much memory the state of a sequence takes that was given a reservation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reservation:
    """Room for all that a sequence may come to: `tokens` in all, at most `chunk` of them a step, of which the last `drafted` may
    be taken back one by one."""

    tokens: int
    chunk: int
    drafted: int = 0

    def capacity(self, window: int | None) -> int:
        """Tokens of a layer's buffers. Beyond a window, half of them are free after each compaction, so that it stays rare."""
        return self.tokens if window is None else min(self.tokens, 2 * (window - 1) + self.chunk)


@dataclass(frozen=True)
class StateSize:
    """`layers`: of each layer with keys and values, the bytes of a token and the window; `fixed`: bytes of layers whose state
    does not grow; `copy`: those of a further copy of it, for each token that may be taken back."""

    layers: tuple[tuple[int, int | None], ...]
    fixed: int = 0
    copy: int = 0

    def nbytes(self, reservation: Reservation) -> int:
        """All that a state keeps."""
        return self.fixed + self.copy * reservation.drafted + sum(self._layers(reservation))

    def moving(self, reservation: Reservation) -> int:
        """What is there beside it while a layer takes new buffers and still has the old: layers do so one by one."""
        return max(self._layers(reservation), default=0)

    def _layers(self, reservation: Reservation) -> list[int]:
        return [token_bytes * reservation.capacity(window) for token_bytes, window in self.layers]
