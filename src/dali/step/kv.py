"""The keys and values one layer keeps of one sequence: the `LayerState` of attention (see step/state.py)."""

from __future__ import annotations

from torch import Tensor

INITIAL_TOKENS = 128


class LayerKV:
    """One layer's keys and values, [heads, tokens, width] each; both widths as the model has them.

    A sliding-window layer forgets tokens no later query can see: `first` is the position of the oldest one kept.
    """

    def __init__(self) -> None:
        self.first = 0
        self.length = 0  # tokens kept
        self._window: int | None = None
        self._capacity = 0  # tokens
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._addresses = (0, 0)  # of keys and values

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in (self._keys, self._values) if buffer is not None)

    @property
    def kept(self) -> list[Tensor]:
        """Keys and values of all tokens that are kept."""
        return [buffer[:, : self.length] for buffer in (self._keys, self._values) if buffer is not None]

    def append(self, keys: Tensor, values: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """Add new tokens, [heads, new, width]; returns views of all that are kept."""
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
    ) -> tuple[int, int, int, int, int, int]:
        """Make room for new tokens, [heads, new, width] from row `row` of their step on, and say where the first goes: as
        native.attend() and attend_prompt() want it, which write them there."""
        new = keys.shape[1]
        if self.length + new > self._capacity or self._window != window:
            self._reserve(keys, values, window)
        place = self.length
        self.length = place + new
        first = max(0, place + 1 - window) if window else 0
        return row, *self._addresses, self._capacity, place, first

    def _reserve(self, keys: Tensor, values: Tensor, window: int | None) -> None:
        """Room for new tokens like these. Drops what the window has left behind; doubles the buffers if that is not enough."""
        new = keys.shape[1]
        self._window = window
        if self.length + new <= self._capacity:
            return
        kept = min(self.length, window - 1) if window else self.length
        dropped = self.length - kept
        capacity = self._capacity or INITIAL_TOKENS
        while capacity < kept + new or (window and capacity < 2 * kept):  # half free: compaction stays rare
            capacity *= 2
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
