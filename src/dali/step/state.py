"""What one sequence keeps between steps, a layer at a time.

Keys and values can be cut back to any earlier length. A layer with recurrent state cannot: it returns only to a place of which it
took a snapshot. The engine asks both in the same words, so an interrupted step, a prompt that continues an earlier one and a
failed draft are undone alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from torch import Tensor

from dali.step.kv import LayerKV, Reservation
from dali.step.size import StateSize


class LayerState(Protocol):
    """One layer's state of one sequence. `trims`: whether `rollback` needs no snapshot, as nothing is overwritten."""

    trims: bool

    @property
    def nbytes(self) -> int:
        """Memory it takes."""

    def snapshot(self) -> object:
        """What `rollback` needs to return here: a copy of what later tokens overwrite, None where nothing is."""

    def reaches(self, tokens: int, snapshot: object) -> bool:
        """Whether `rollback` to `tokens` tokens, with what was `snapshot` there, is possible."""

    def rollback(self, tokens: int, snapshot: object) -> None:
        """Be as after the first `tokens` tokens again."""


Layer = TypeVar("Layer", bound=LayerState)


@dataclass(frozen=True)
class Snapshot:
    """A place in a sequence to return to: after how many tokens, and the copies of layers that overwrite."""

    tokens: int
    copies: dict[int, object] = field(default_factory=dict)


class SequenceState:
    """All layers of one sequence."""

    def __init__(self) -> None:
        self._layers: dict[int, LayerState] = {}
        self._overwriting: list[int] = []  # layers that need a copy to return
        self._reservation: Reservation | None = None

    def layer(self, index: int, kind: type[Layer]) -> Layer:
        """Layer `index`'s state, begun as a `kind` when it is first asked for."""
        state = self._layers.get(index)
        if state is None:
            state = self._layers[index] = kind()
            if not state.trims:
                self._overwriting.append(index)
        return state  # type: ignore[return-value]  # a layer asks for one kind only

    def kv(self, index: int) -> LayerKV:
        """Layer `index`'s keys and values."""
        state = self._layers.get(index)
        if isinstance(state, LayerKV):
            return state
        state = self.layer(index, LayerKV)
        if self._reservation is not None:
            state.reserve(self._reservation)
        return state

    def reserve(self, reservation: Reservation) -> None:
        """Let each layer take what `reservation` asks for at once, neither less nor more: its memory is known from here on."""
        self._reservation = reservation
        for layer in self._layers.values():
            if isinstance(layer, LayerKV):
                layer.reserve(reservation)

    def anew(self) -> SequenceState:
        """An empty one with the same reservation."""
        state = SequenceState()
        state._reservation = self._reservation
        return state

    @property
    def size(self) -> StateSize:
        """What follows from these layers, each of which has seen a token, for any other sequence."""
        layers = self._layers.values()
        kv = [layer for layer in layers if isinstance(layer, LayerKV)]
        return StateSize(
            tuple((layer.token_bytes, layer.window) for layer in kv),
            sum(layer.nbytes for layer in layers if not isinstance(layer, LayerKV)),
        )

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self._layers.values())

    @property
    def kept(self) -> list[Tensor]:
        """All that its layers keep of tokens, layer by layer."""
        layers = (self._layers[index] for index in sorted(self._layers))
        return [tensor for layer in layers if isinstance(layer, LayerKV) for tensor in layer.kept]

    def snapshot(self, tokens: int) -> Snapshot:
        """Remember this place, after `tokens` tokens. Costs nothing where all layers can be cut back."""
        return Snapshot(tokens, {index: self._layers[index].snapshot() for index in self._overwriting})

    def rollback(self, to: Snapshot) -> bool:
        """Be as at `to` again. False, and nothing done, where a layer cannot: a window has moved on, or no copy was taken."""
        places = [(layer, to.copies.get(index)) for index, layer in self._layers.items()]
        if not all(layer.reaches(to.tokens, copy) for layer, copy in places):
            return False
        for layer, copy in places:
            layer.rollback(to.tokens, copy)
        return True

    def truncate(self, tokens: int) -> bool:
        """Forget positions from `tokens` on, without a snapshot of that place. As `rollback`."""
        return self.rollback(Snapshot(tokens))
