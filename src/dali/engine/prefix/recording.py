"""What a live sequence leaves in the prefix cache, as it is computed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple
from weakref import ref

from dali.engine.prefix.names import BLOCK, PLACE, Names
from dali.engine.prefix.tree import Entry, Leaf, Node, Tokens
from dali.step.kept import Kept
from dali.step.state import MOST_PLACES, SequenceState

if TYPE_CHECKING:
    from dali.engine.prefix.prefixes import Prefixes


class _Here(NamedTuple):
    """Behind the last whole block. One value: Ctrl-C must not leave names of other tokens."""

    end: int
    node: Node | None  # None where RAM has not what comes before
    names: Names | None  # None where there is no disk


class Recording:
    """Of one sequence, whose `tokens` grow. It goes by whole blocks, each as soon as it is computed: a window has not moved past
    any of its tokens then, as no block is larger than a window."""

    def __init__(
        self, prefixes: Prefixes, tokens: list[int], regime: int, computed: int, places: Iterable[int]
    ) -> None:
        """`computed`: of its tokens that were taken over; `places`: where later prompts may part from it."""
        self._prefixes, self._tokens, self._regime = prefixes, tokens, regime
        self._places = frozenset(places)
        self._seen = computed  # tokens up to which all is kept that shall be
        self._done = False  # whether nothing more can be kept
        # What was kept since a token was chosen last, weakly, as what is evicted takes no memory; and its names on disk.
        self._unproven: list[ref[Entry]] = []
        self._names: list[str] = []
        node = prefixes.tree.walk(regime, tuple(tokens[:computed]), prefixes.block)
        names = None
        if prefixes.folder is not None:
            names = Names(prefixes.identity, regime).after(tokens[: node.end])
        self._at = _Here(node.end, node, names)
        while self._at.end + prefixes.block <= computed and self._on_disk():
            self._advance(None)

    def prepare(self, state: SequenceState, computed: int, tokens: int) -> None:
        """The next step computes so many tokens: let `state` make copies at the places that it comes by."""
        places = self._between(computed, computed + tokens)
        if places or len(state.places) > MOST_PLACES:
            state.keep(places, passing=True)

    def _between(self, begin: int, end: int) -> list[int]:
        """Places to be kept behind `begin` tokens, up to `end`."""
        if not self._prefixes.recurrent or self._done:
            return []
        spacing = self._prefixes.spacing
        regular = range(begin + spacing - begin % spacing, end + 1, spacing)
        return sorted({*regular, *(place for place in self._places if begin < place <= end)})

    def advance(self, state: SequenceState, computed: int) -> None:
        """The sequence's first `computed` tokens are computed, and `state` has seen no others."""
        for place in self._between(self._seen, computed):
            self._blocks(state, place)
            self._place(state, place)
        self._blocks(state, computed)
        self._seen = computed

    def finish(self, state: SequenceState, computed: int) -> None:
        """As `advance`, for the last time."""
        self.advance(state, computed)
        if computed > self._at.end or (computed and self._prefixes.recurrent):
            self._place(state, computed)
        self._prefixes.use(tuple(self._tokens[:computed]), self._regime)
        self._done = True

    def prove(self) -> None:
        """A token was chosen: what is kept so far has led to logits that are finite."""
        self._unproven.clear()
        self._names.clear()

    def undo(self) -> None:
        """No token could be chosen: take out what was kept for it, and all that others have added behind it."""
        entries = [entry for one in self._unproven if (entry := one()) is not None]
        self._prefixes.remove(entries, self._names)
        self.prove()
        self._done = True

    def _blocks(self, state: SequenceState, computed: int) -> None:
        while not self._done and self._at.end + self._prefixes.block <= computed:
            self._keep_block(state)

    def _keep_block(self, state: SequenceState) -> None:
        at, node, tokens = self._at, self._node(), self._block
        if node is None and at.names is None:
            self._done = True
            return
        if node is not None and tokens in node.children:
            self._advance(node.children[tokens])
            return
        kept = state.kept_of(at.end, at.end + len(tokens), with_states=False)
        if kept is None:  # a window has moved on, as after an interrupted step
            self._done = True
            return
        name = None if at.names is None else at.names.name(BLOCK, tokens)
        if node is None:
            self._write(name, tokens, kept)
            self._advance(None)
            return
        child = Node(node, tokens, kept, name)
        self._add(child)
        for leaf in [leaf for leaf in node.leaves.values() if _contains(child, leaf)]:
            self._prefixes.tree.drop(leaf)
        self._advance(None if child.gone else child)

    def _place(self, state: SequenceState, place: int) -> None:
        """Keep what recurrent layers are at a place of the block at hand, with its keys and values up to there."""
        at, node = self._at, self._node()
        if self._done or not at.end <= place < at.end + self._prefixes.block:
            return
        if node is None and at.names is None:
            return
        tokens = tuple(self._tokens[at.end : place])
        if node is not None and tokens in node.leaves:
            self._prefixes.tree.use(node.leaves[tokens])
            return
        kept = state.kept_of(at.end, place, with_states=self._prefixes.recurrent)
        if kept is None:  # no copy was made
            return
        name = None if at.names is None else at.names.name(PLACE, tokens)
        if node is None:
            self._write(name, tokens, kept)
        else:
            self._add(Leaf(node, tokens, kept, name))

    def _add(self, entry: Entry) -> None:
        self._unproven.append(ref(entry))
        if entry.name is not None:
            self._names.append(entry.name)
        self._prefixes.add(entry)

    def _write(self, name: str | None, tokens: Tokens, kept: Kept) -> None:
        if name is not None:
            self._names.append(name)
        self._prefixes.write(name, tokens, kept)

    @property
    def _block(self) -> Tokens:
        """The tokens of the block at hand."""
        return tuple(self._tokens[self._at.end : self._at.end + self._prefixes.block])

    def _node(self) -> Node | None:
        """The node of the last block, if it is still in RAM."""
        node = self._at.node
        return None if node is None or node.gone else node

    def _advance(self, child: Node | None) -> None:
        """Go on behind the block at hand, which is `child`'s. Where it is not in RAM there is only the disk left."""
        at, tokens = self._at, self._block
        names = None if at.names is None else at.names.after(tokens)
        self._at = _Here(at.end + len(tokens), child, names)

    def _on_disk(self) -> bool:
        folder, names = self._prefixes.folder, self._at.names
        return folder is not None and names is not None and folder.has(names.name(BLOCK, self._block))


def _contains(node: Node, leaf: Leaf) -> bool:
    """Whether a block has all that is kept in a leaf beside it."""
    return not leaf.kept.states and node.tokens[: len(leaf.tokens)] == leaf.tokens
