"""The keys and values one layer keeps of one sequence: the `LayerState` of attention (see step/state.py)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dali.errors import DaliError
from dali.kernels.kept_rows import row_bytes
from dali.step.size import Reservation

INITIAL_TOKENS = 128


class LayerKV:
    """One layer's keys and values, [heads, tokens, width] each; both widths as the model has them. `in_q8`: in 8 bits, rows of
    bytes in the place of the widths' values (kernels/kept_rows.py), which only the compiled kernels write, each once.

    A sliding-window layer forgets tokens no later query can see: `first` is the position of the oldest one kept. With a
    reservation, buffers have its size from the beginning on; without one they double as tokens come.
    """

    def __init__(self, in_q8: bool = False) -> None:
        self.in_q8 = in_q8
        self.first = 0
        self.length = 0  # tokens kept
        self._window: int | None = None
        self._capacity = 0  # tokens
        self._reservation: Reservation | None = None
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._addresses = (0, 0)  # of keys and values

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in (self._keys, self._values) if buffer is not None)

    @property
    def token_bytes(self) -> int:
        """Memory of one token, known once there was one."""
        return self.nbytes // self._capacity

    @property
    def window(self) -> int | None:
        """Tokens that a query sees, itself included; None for all."""
        return self._window

    @property
    def kept(self) -> list[Tensor]:
        """Keys and values of all tokens that are kept."""
        return [buffer[:, : self.length] for buffer in (self._keys, self._values) if buffer is not None]

    def append(self, keys: Tensor, values: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """Add new tokens, [heads, new, width]; returns views of all that are kept. DaliError in 8 bits."""
        if self.in_q8:
            raise DaliError(
                "Keys and values in 8 bits are kept by dali's compiled kernels, and here torch computes attention.",
                "Load the model without cache_type.",
            )
        new = keys.shape[1]
        self._reserve(keys, values, window)
        assert self._keys is not None
        assert self._values is not None
        begin, self.length = self.length, self.length + new
        self._keys[:, begin : self.length] = keys
        self._values[:, begin : self.length] = values
        return self._keys[:, : self.length], self._values[:, : self.length]

    def place(
        self, row: int, keys: Tensor, values: Tensor, window: int | None
    ) -> tuple[int, int, int, int, int, int, bool]:
        """Make room for new tokens, [heads, new, width] from row `row` of their step on, and say where the first goes: as
        native.attend() and attend_prompt() want it, which write them there."""
        new = keys.shape[1]
        if self.length + new > self._capacity or self._window != window:
            self._reserve(keys, values, window)
        place = self.length
        self.length = place + new
        first = max(0, place + 1 - window) if window else 0
        return row, *self._addresses, self._capacity, place, first, self.in_q8

    def reserve(self, reservation: Reservation) -> None:
        """Have the size that `reservation` asks for, from here on: what is kept moves."""
        self._reservation = reservation
        if self._keys is not None and self._values is not None:
            capacity = max(reservation.capacity(self._window), self.length)
            if capacity != self._capacity:
                self._move(self._keys, self._values, capacity, self.length)

    def _reserve(self, keys: Tensor, values: Tensor, window: int | None) -> None:
        """Room for new tokens like these. Drops what the window has left behind; doubles the buffers if that is not enough."""
        new = keys.shape[1]
        self._window = window
        if self.length + new <= self._capacity:
            return
        kept = min(self.length, window - 1) if window else self.length
        capacity = self._capacity or INITIAL_TOKENS
        if self._reservation is not None:
            capacity = self._reservation.capacity(window)
        while capacity < kept + new or (window and capacity < 2 * kept):  # half free: compaction stays rare
            capacity *= 2
        self._move(self._as_kept(keys), self._as_kept(values), capacity, kept)

    def _as_kept(self, sample: Tensor) -> Tensor:
        """No tokens, as this layer keeps those that come like `sample`."""
        if not self.in_q8:
            return sample[:, :0]
        width = row_bytes(sample.shape[2])
        return torch.empty(len(sample), 0, width, dtype=torch.uint8, device=sample.device)

    def _move(self, keys: Tensor, values: Tensor, capacity: int, kept: int) -> None:
        """Take buffers of `capacity` tokens, of kept keys and values like these, and the last `kept` tokens along."""
        dropped = self.length - kept
        buffers = []
        for old, sample in ((self._keys, keys), (self._values, values)):
            buffer = sample.new_empty(sample.shape[0], capacity, sample.shape[2])
            if old is not None:
                buffer[:, :kept] = old[:, dropped : self.length]
            buffers.append(buffer)
        addresses = buffers[0].data_ptr(), buffers[1].data_ptr()
        # Together: Ctrl-C must not leave one without the others.
        self._keys, self._values, self._addresses, self._capacity = *buffers, addresses, capacity
        self.first += dropped
        self.length = kept

    def nearest(self, tokens: int) -> int | None:
        """`tokens` itself, if all that this position would see is still here."""
        within = self.first == 0 or (self._window is not None and tokens - self._window + 1 >= self.first)
        return tokens if within else None

    def rollback(self, tokens: int) -> None:
        """Keep positions below `tokens`."""
        self.length = min(self.length, tokens - self.first)

    def of(self, begin: int, end: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of positions [begin, end), which the next step may move; None where one of them is not here."""
        if self._keys is None or self._values is None or begin < self.first or end > self.first + self.length:
            return None
        rows = slice(begin - self.first, end - self.first)
        return self._keys[:, rows], self._values[:, rows]

    def resume(
        self,
        end: int,
        window: int | None,
        kept: Iterable[tuple[int, Tensor, Tensor]],
        room: int,
        device: torch.device,
    ) -> None:
        """Begin anew as after `end` tokens, with room for `room`: `kept` are keys and values of stretches of them, each from a
        position on, and together all that a later token sees."""
        stretches = list(kept)
        first = 0 if window is None else max(0, end - (window - 1))
        self._window, length = window, end - first
        if self._reservation is not None:
            capacity = max(self._reservation.capacity(window), length)
        else:
            capacity = INITIAL_TOKENS
            while capacity < (room if window is None else 2 * length):
                capacity *= 2
        _, keys, values = stretches[0]
        self.first = self.length = 0
        self._move(keys[:, :0].to(device), values[:, :0].to(device), capacity, 0)
        assert self._keys is not None
        assert self._values is not None
        begins, all_keys, all_values = zip(*stretches, strict=True)
        cuts = [slice(max(first - begin, 0), end - begin) for begin in begins]
        _join([part[:, cut] for part, cut in zip(all_keys, cuts, strict=True)], self._keys[:, :length])
        _join([part[:, cut] for part, cut in zip(all_values, cuts, strict=True)], self._values[:, :length])
        self.first, self.length = first, length


def _join(parts: list[Tensor], into: Tensor) -> None:
    """Copy stretches of tokens that follow one another, [heads, tokens, width] each, in one call: one a stretch takes longer to
    begin than to copy."""
    if into.device == parts[0].device:
        torch.cat(parts, 1, out=into)
    else:
        into.copy_(torch.cat(parts, 1))
