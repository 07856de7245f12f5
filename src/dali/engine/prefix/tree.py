"""A tree over tokens: what is kept in RAM of many sequences, those that begin alike sharing their beginning.

A node stands for a whole block of tokens after its parent's. What is kept in the middle of a block, the end of a sequence or a
place of recurrent layers, is a leaf of its own beside the node's children. All of it is evicted by last use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from dali.step.kept import Kept

Tokens = tuple[int, ...]


@dataclass(eq=False)
class Leaf:
    """`tokens` after the `parent`'s: their keys and values, and what recurrent layers were at their end."""

    parent: Node
    tokens: Tokens
    kept: Kept
    name: str | None = None  # of its file, where there may be one
    gone: bool = False  # evicted

    @property
    def begin(self) -> int:
        """Tokens before it."""
        return self.parent.end

    @property
    def end(self) -> int:
        return self.begin + len(self.tokens)


@dataclass(eq=False)
class Node:
    """A block. The root of all is one without tokens."""

    parent: Node | None = None
    tokens: Tokens = ()
    kept: Kept = field(default_factory=Kept)
    name: str | None = None
    gone: bool = False
    children: dict[Tokens, Node] = field(default_factory=dict)
    leaves: dict[Tokens, Leaf] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.end: int = len(self.tokens) + (0 if self.parent is None else self.parent.end)

    @property
    def begin(self) -> int:
        return self.end - len(self.tokens)

    @property
    def path(self) -> Iterator[Node]:
        """Itself and all before it, but for the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent

    @property
    def following(self) -> list[Entry]:
        """All that may follow at once."""
        return [*self.children.values(), *self.leaves.values()]


Entry = Node | Leaf


class Tree:
    """At most `budget` bytes of entries."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self._roots: dict[int, Node] = {}
        self._by_use: OrderedDict[Entry, None] = OrderedDict()  # the one not used for longest first

    def __len__(self) -> int:
        return len(self._by_use)

    def root(self, regime: int) -> Node:
        """Where sequences of a regime begin."""
        return self._roots.setdefault(regime, Node())

    def walk(self, regime: int, tokens: Tokens, block: int) -> Node:
        """The deepest node whose blocks, of so many tokens each, are all among the first of `tokens`."""
        node = self.root(regime)
        while (child := node.children.get(tokens[node.end : node.end + block])) is not None:
            node = child
        return node

    def add(self, entry: Entry) -> list[Entry]:
        """Take an entry whose parent is here; what was evicted for it, which may be itself."""
        assert entry.parent is not None
        if entry.kept.nbytes > self.budget:
            entry.gone = True
            return [entry]
        self._by_use[entry] = None
        self.nbytes += entry.kept.nbytes
        if isinstance(entry, Node):  # last: what Ctrl-C leaves halfway is only evicted
            entry.parent.children[entry.tokens] = entry
        else:
            entry.parent.leaves[entry.tokens] = entry
        self.use(entry)
        evicted: list[Entry] = []
        while self.nbytes > self.budget and self._by_use:
            evicted += self.drop(next(iter(self._by_use)))
        return evicted

    def use(self, entry: Entry) -> None:
        """It serves now, and all before it does: what comes later goes first."""
        path: list[Entry] = [*entry.path] if isinstance(entry, Node) else [entry, *entry.parent.path]
        for each in path:
            if each in self._by_use:
                self._by_use.move_to_end(each)

    def drop(self, entry: Entry) -> list[Entry]:
        """Take out an entry and all that follows it, and name them."""
        assert entry.parent is not None
        siblings: dict[Tokens, Node] | dict[Tokens, Leaf]
        siblings = entry.parent.children if isinstance(entry, Node) else entry.parent.leaves
        if siblings.get(entry.tokens) is entry:
            del siblings[entry.tokens]
        dropped, found = [], [entry]
        while found:
            one = found.pop()
            one.gone = True
            if one in self._by_use:
                del self._by_use[one]
                self.nbytes -= one.kept.nbytes
            dropped.append(one)
            if isinstance(one, Node):
                found += one.following
        return dropped

    def clear(self) -> None:
        """Keep nothing any longer."""
        for entry in (*self._by_use, *self._roots.values()):
            entry.gone = True
        self._roots.clear()
        self._by_use.clear()
        self.nbytes = 0
