"""Balanced locking: an even share of the places is each layer's own (FlexInfer, arXiv 2503.03777).

FlexInfer locks as many bytes of every layer in RAM, so that none of them waits longer for the disk than the others. Here a
layer's share is locked: only a layer that holds more than it gives an expert up. Which of a layer's experts those are goes by
fading workload; FlexInfer's dense models have no such choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dali.policies.pool import fading


def locked(layers: int, slots: int) -> tuple[int, ...]:
    """Places of each layer that stay its own: as equal as can be, the first layers' one more."""
    share, over = divmod(slots, layers)
    return tuple(share + (layer < over) for layer in range(layers))


class Policy(fading.Policy):
    """`balanced`."""

    def __init__(self, layers: int, experts: int, slots: int, read_seconds: Sequence[float]) -> None:
        super().__init__(layers, experts, slots, read_seconds)
        self._locked = locked(layers, slots)

    def donors(self, layer: int, counts: Sequence[int]) -> Iterable[int]:
        held = enumerate(zip(counts, self._locked, strict=True))  # with the one that comes
        return [other for other, (count, share) in held if count + (other == layer) > share]
