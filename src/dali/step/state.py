"""What one sequence keeps between steps, a layer at a time.

Keys and values can be cut back to any earlier length. A layer with recurrent state cannot: it returns only to where its last step
began, and to places of which it kept a copy. The engine asks both in the same words, so an interrupted step, a prompt that
continues an earlier one and a failed draft are undone alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from torch import Tensor

from dali.step.kv import LayerKV
from dali.step.recurrent import RecurrentState

MOST_PLACES = 4  # of which recurrent layers keep copies, the last ones
MOST_COPIED_BYTES = 512 << 20  # fewer places, but two, where their copies take more


class LayerState(Protocol):
    """What one layer keeps of one sequence."""

    @property
    def nbytes(self) -> int:
        """Memory it takes."""

    @property
    def kept(self) -> list[Tensor]:
        """All that it keeps of tokens."""

    def nearest(self, tokens: int) -> int | None:
        """The last place, of at most `tokens` tokens, that `rollback` can return to; None: there is none."""

    def rollback(self, tokens: int) -> None:
        """Be as after the first `tokens` tokens again, which `nearest` names for them."""


Layer = TypeVar("Layer", bound=LayerState)


class SequenceState:
    """All layers of one sequence. A place in it is a number of tokens: what its layers are after those."""

    def __init__(self) -> None:
        self._layers: dict[tuple[int, type], LayerState] = {}
        self.places: list[int] = []  # of which recurrent layers keep copies, ascending

    def layer(self, index: int, kind: type[Layer]) -> Layer:
        """What layer `index` keeps of this kind, begun when it is first asked for."""
        state = self._layers.get((index, kind))
        if state is None:
            state = self._layers[index, kind] = kind()
        return state  # type: ignore[return-value]  # the kind is part of the key

    def kv(self, index: int) -> LayerKV:
        """Layer `index`'s keys and values."""
        return self.layer(index, LayerKV)

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self._layers.values())

    def nbytes_at(self, growth: int) -> int:
        """Memory it takes where keys and values have grown by that factor, and recurrent layers have all the copies they may."""
        recurrent = sum(layer.nbytes for layer in self._recurrent)
        each = sum(layer.copy_bytes for layer in self._recurrent)
        return (self.nbytes - recurrent) * growth + 2 * each + self._most_places(each) * each

    @staticmethod
    def _most_places(bytes_each: int) -> int:
        return max(2, min(MOST_PLACES, MOST_COPIED_BYTES // max(bytes_each, 1)))

    @property
    def _recurrent(self) -> list[RecurrentState]:
        return [layer for layer in self._layers.values() if isinstance(layer, RecurrentState)]

    @property
    def kept(self) -> list[Tensor]:
        """All that its layers keep of tokens, layer by layer."""
        layers = (
            self._layers[key] for key in sorted(self._layers, key=lambda key: (key[0], key[1].__name__))
        )
        return [tensor for layer in layers for tensor in layer.kept]

    def keep(self, places: Iterable[int]) -> None:
        """Let recurrent layers copy what they are at these places when they come by, too, and give up the earliest of all copies
        where they are too many."""
        recurrent = self._recurrent
        most = self._most_places(sum(layer.copy_bytes for layer in recurrent))
        self.places = sorted({*self.places, *places})[-most:]
        for layer in recurrent:
            layer.forget(self.places)

    def nearest(self, tokens: int) -> int | None:
        """The last place, of at most `tokens` tokens, that all layers can return to; None: there is none."""
        place: int | None = tokens
        while place is not None:
            reached = [layer.nearest(place) for layer in self._layers.values()]
            if all(each == place for each in reached):
                return place
            place = None if None in reached else min(each for each in reached if each is not None)
        return None

    def rollback(self, tokens: int) -> bool:
        """Be as after the first `tokens` tokens again. False, and nothing done, where a layer cannot: a window has moved on, or
        no copy was kept."""
        if self.nearest(tokens) != tokens:
            return False
        self.places = [place for place in self.places if place <= tokens]
        for layer in self._layers.values():
            layer.rollback(tokens)
        return True
