"""What one sequence keeps between steps, a layer at a time.

Keys and values can be cut back to any earlier length. A layer with recurrent state cannot: it returns only to where its last step
began, and to places of which it kept a copy. The engine asks both in the same words, so an interrupted step, a prompt that
continues an earlier one and a failed draft are undone alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from dali.step.kept import Kept, KeptState, KeptTokens, gather
from dali.step.kv import LayerKV
from dali.step.recurrent import RecurrentState
from dali.step.size import Reservation, StateSize

MOST_PLACES = 4  # of which recurrent layers keep copies, the last ones
MOST_PASSING = 16  # of which they do for one step, whose copies somebody takes
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

    def __init__(self, in_q8: bool = False) -> None:
        """`in_q8`: whether keys and values are kept in 8 bits."""
        self._in_q8 = in_q8
        self._layers: dict[tuple[int, type], LayerState] = {}
        self.places: list[int] = []  # of which recurrent layers keep copies, ascending
        self._drafted: frozenset[int] = frozenset()  # those of them that the step under way needs alone
        self._reservation: Reservation | None = None

    def layer(self, index: int, kind: type[Layer]) -> Layer:
        """What layer `index` keeps of this kind, begun when it is first asked for."""
        state = self._layers.get((index, kind))
        if state is None:
            state = self._layers[index, kind] = kind()
        return state  # type: ignore[return-value]  # the kind is part of the key

    def kv(self, index: int) -> LayerKV:
        """Layer `index`'s keys and values."""
        state = self._layers.get((index, LayerKV))
        if isinstance(state, LayerKV):
            return state
        state = self._layers[index, LayerKV] = LayerKV(self._in_q8)
        if self._reservation is not None:
            state.reserve(self._reservation)
        return state

    def reserve(self, reservation: Reservation) -> None:
        """Let each layer take what `reservation` asks for at once, neither less nor more: its memory is known from here on."""
        self._reservation = reservation
        for layer in self._layers.values():
            if isinstance(layer, LayerKV):
                layer.reserve(reservation)

    def clear(self) -> None:
        """Keep nothing any longer, whoever still holds it."""
        self._layers.clear()
        self.places.clear()

    def anew(self) -> SequenceState:
        """An empty one that keeps alike, with the same reservation."""
        state = SequenceState(self._in_q8)
        state._reservation = self._reservation
        return state

    @property
    def size(self) -> StateSize:
        """What follows from these layers, each of which has seen a token, for any other sequence."""
        layers = self._layers.values()
        kv = [layer for layer in layers if isinstance(layer, LayerKV)]
        each = sum(layer.copy_bytes for layer in self._recurrent)  # which all keep twice, and copies of it
        return StateSize(
            tuple((layer.token_bytes, layer.window) for layer in kv),
            (2 + self._most_places(each)) * each,
            each,
        )

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self._layers.values())

    @staticmethod
    def _most_places(bytes_each: int, most: int = MOST_PLACES) -> int:
        return max(2, min(most, MOST_COPIED_BYTES // max(bytes_each, 1)))

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

    def keep(self, places: Iterable[int], passing: bool = False) -> None:
        """Let recurrent layers copy what they are at these places when they come by, too, and give up the earliest of all copies
        where they are too many. `passing`: more may be there until the next call, unless memory is reserved."""
        recurrent = self._recurrent
        most = MOST_PASSING if passing and self._reservation is None else MOST_PLACES
        most = self._most_places(sum(layer.copy_bytes for layer in recurrent), most)
        self.places = sorted({*self.places, *places})[-most:]
        for layer in recurrent:
            layer.forget(self.places)

    @property
    def draftable(self) -> int:
        """How many tokens a draft may have, so that each can be taken back: recurrent layers need a copy each."""
        each = sum(layer.copy_bytes for layer in self._recurrent)
        if self._reservation is not None and each:
            return self._reservation.drafted
        return MOST_COPIED_BYTES // max(each, 1)

    def prepare_draft(self, computed: int, tokens: int) -> None:
        """The next step computes so many tokens, of which all but the first may be taken back."""
        if self._recurrent:
            self._drafted = frozenset(range(computed + 1, computed + tokens)).difference(self.places)
            self.places = sorted({*self.places, *self._drafted})

    def settle_draft(self, tokens: int) -> bool:
        """Keep the first `tokens` tokens, all that there are or as many as the draft was right: as `rollback`."""
        if not self.rollback(tokens):
            return False
        if self._drafted:
            self.places = [place for place in self.places if place not in self._drafted]
            self._drafted = frozenset()
            for layer in self._recurrent:
                layer.forget(self.places)
        return True

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

    @torch.inference_mode()
    def kept_of(self, begin: int, end: int, with_states: bool) -> Kept | None:
        """Copies of keys and values of positions [begin, end), and of what recurrent layers were at the end if `with_states`.
        None where a layer does not have them any longer."""
        layers = sorted(self._layers.items(), key=lambda item: (item[0][0], item[0][1].__name__))
        kv = [(index, layer) for (index, _), layer in layers if isinstance(layer, LayerKV)]
        found = [layer.of(begin, end) for _, layer in kv]
        recurrent = [(index, layer) for (index, _), layer in layers if isinstance(layer, RecurrentState)]
        states = [layer.at(end) for _, layer in recurrent] if with_states else []
        there = [pair for pair in found if pair is not None]
        if len(there) < len(found) or any(state is None for state in states):
            return None
        copies = iter(gather([part for pair in there for part in pair]))
        tokens = [KeptTokens(index, layer.window, next(copies), next(copies)) for index, layer in kv]
        return Kept(
            tuple(tokens),
            tuple(
                KeptState(index, type(layer), state.cpu())
                for (index, layer), state in zip(recurrent, states, strict=False)
                if state is not None
            ),
        )

    @torch.inference_mode()
    def resume(self, place: int, kept: Sequence[tuple[int, Kept]], room: int, device: torch.device) -> None:
        """Be, from empty, as after `place` tokens, with room for `room` of them. `kept`: stretches in order, each from a position
        on, that together have what a later token sees; the last with what recurrent layers were at the place."""
        (_, first), (_, last) = kept[0], kept[-1]
        for at, (index, window, _, _) in enumerate(first.tokens):
            stretches = [(begin, *each.tokens[at][2:]) for begin, each in kept]
            self.kv(index).resume(place, window, stretches, room, device)
        for index, kind, tensor in last.states:
            self.layer(index, kind).resume(place, tensor, device)
