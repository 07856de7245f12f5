"""The prefix cache: keys, values and states of many sequences, in RAM and on disk, for prompts that begin as they did.

A sequence that goes on from what another has left gets the bits that it would compute itself, as those depend on its tokens alone
(docs/ARCHITECTURE.md, "Correctness").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dali.engine.prefix.folder import Folder
from dali.engine.prefix.names import BLOCK, Names
from dali.engine.prefix.reading import Read, Reading
from dali.engine.prefix.recording import Recording
from dali.engine.prefix.tree import Entry, Leaf, Node, Tokens, Tree
from dali.step.kept import Kept

BLOCK_TOKENS = 64  # at most; no more than the smallest window has
SPACING = 1024  # tokens between places of recurrent layers that nobody asked for, at least


@dataclass(frozen=True)
class Found:
    """What a sequence may go on from: `kept` are stretches of its first `place` tokens, each from a position on."""

    place: int
    kept: list[tuple[int, Kept]]


@dataclass(frozen=True)
class _Place:
    """Behind how many whole blocks it is, and what holds the rest: an entry, a file's name, or nothing."""

    place: int
    blocks: int
    rest: Entry | str | None


@dataclass(frozen=True)
class _Way:
    """What leads to a place: each a block, but for what holds the rest; an entry, or a file's name, and the tokens it has."""

    place: _Place
    holders: list[Entry | str]
    parts: list[Tokens]

    @property
    def files(self) -> dict[str, list[int]]:
        """Those that RAM does not have, with their tokens."""
        pairs = zip(self.holders, self.parts, strict=True)
        return {name: list(own) for name, own in pairs if isinstance(name, str)}


class Prefixes:
    """What is kept: at most `ram` bytes, and what `folder` may have, if there is one. One thread at a time may ask."""

    def __init__(
        self,
        ram: int,
        folder: Folder | None = None,
        identity: str = "",
        recurrent: bool = False,
        window: int | None = None,
        spacing: int | None = None,
    ) -> None:
        """`identity`: of the model and all that its bits depend on, told by files' names; `recurrent`: whether it has recurrent
        layers; `window`: its smallest; `spacing`: None for one at which places take no more than keys and values do."""
        self.tree, self.folder, self.identity = Tree(ram), folder, identity
        self.block = min(BLOCK_TOKENS, window or BLOCK_TOKENS)
        self.recurrent = recurrent
        self._spacing = spacing
        self._token_bytes = self._state_bytes = 0
        self.taken = {"ram": 0, "disk": 0}  # tokens taken over
        self.evicted = 0  # entries, from RAM

    @property
    def enabled(self) -> bool:
        return self.tree.budget > 0 or self.folder is not None

    @property
    def spacing(self) -> int:
        """Tokens between places that nobody asked for."""
        if self._spacing is not None:
            return self._spacing
        spacing = SPACING
        while self._token_bytes * spacing < self._state_bytes:
            spacing *= 2
        return spacing

    def stats(self) -> dict[str, Any]:
        """Entries and bytes in RAM; how many prompt tokens were not computed again thanks to RAM and disk, and how many entries
        were evicted from RAM, so far."""
        return {
            "entries": len(self.tree),
            "bytes": self.tree.nbytes,
            "tokens": dict(self.taken),
            "evicted": self.evicted,
        }

    def record(
        self, tokens: list[int], regime: int, computed: int, places: Iterable[int]
    ) -> Recording | None:
        """What keeps a live sequence, `computed` of whose tokens were taken over; None where nothing is kept."""
        return Recording(self, tokens, regime, computed, places) if self.enabled else None

    def add(self, entry: Entry, on_disk: bool = False) -> None:
        """Keep an entry, on disk, too, where it is not there already, and what has no room in RAM any longer."""
        self._measure(entry.kept, len(entry.tokens))
        if not on_disk:
            self.write(entry.name, entry.tokens, entry.kept)
        for evicted in self.tree.add(entry):
            self.evicted += 1
            self.write(evicted.name, evicted.tokens, evicted.kept)

    def write(self, name: str | None, tokens: Tokens, kept: Kept) -> None:
        """Keep it on disk, if there is one to keep it on."""
        if self.folder is not None and name is not None:
            self.folder.write(name, list(tokens), kept)

    def remove(self, entries: Iterable[Entry], names: list[str]) -> None:
        """Keep those entries no longer, nor what follows them in RAM, nor files of those names."""
        for entry in entries:
            if not entry.gone:
                self.tree.drop(entry)
        if self.folder is not None:
            self.folder.remove(names)

    def use(self, tokens: Tokens, regime: int) -> None:
        """A sequence with these tokens was here: on disk, too, what comes later goes first."""
        if self.folder is None:
            return
        names, blocks = Names(self.identity, regime), []
        for begin in range(0, len(tokens) - self.block + 1, self.block):
            blocks.append(names.name(BLOCK, tokens[begin : begin + self.block]))
            names = names.after(tokens[begin : begin + self.block])
        self.folder.use(reversed(blocks))

    def forget(self) -> None:
        """Keep nothing in RAM any longer."""
        self.tree.clear()

    def close(self) -> None:
        """Forget, once all is on disk that shall be."""
        self.forget()
        if self.folder is not None:
            self.folder.flush()

    def find(self, tokens: Tokens, regime: int, beyond: int, reading: Reading) -> Found | None:
        """The longest prefix of `tokens` that is kept; None where it has no more than `beyond` of them, and while `reading` is
        under way: it begins with what is on disk alone."""
        if not self.enabled:
            return None
        blocks, names = self._blocks(tokens, regime, reading.read)
        place = self._place(tokens, regime, blocks, names, reading.read)
        if place is None or place.place <= beyond:
            return None
        way = self._way(tokens, blocks, place)
        unread = {name: own for name, own in way.files.items() if name not in reading.read}
        if unread:
            reading.begin(unread)
            return None
        return Found(place.place, self._take(way, regime, reading.read))

    def _blocks(self, tokens: Tokens, regime: int, read: Read) -> tuple[list[Node | str], list[Names]]:
        """Whole blocks that are kept from the first on, nodes or names of files; and the names behind each, where there is a
        disk."""
        node: Node | None = self.tree.root(regime)
        blocks: list[Node | str] = []
        names = [] if self.folder is None else [Names(self.identity, regime)]
        for begin in range(0, len(tokens) - self.block + 1, self.block):
            block = tokens[begin : begin + self.block]
            node = None if node is None else node.children.get(block)
            name = names[-1].name(BLOCK, block) if names and node is None else ""
            if node is None and not self._has(name, read):
                break
            blocks.append(name if node is None else node)
            if names:
                names.append(names[-1].after(block))
        return blocks, names

    def _has(self, name: str, read: Read) -> bool:
        """Whether the disk has it; what was read is known."""
        return read[name] is not None if name in read else self.folder is not None and self.folder.has(name)

    def _place(
        self,
        tokens: Tokens,
        regime: int,
        blocks: list[Node | str],
        names: list[Names],
        read: Read,
    ) -> _Place | None:
        """The last place to go on from. Recurrent layers can at places alone that were kept, others anywhere."""
        for count in range(len(blocks), -1, -1):
            begin = count * self.block
            rest = tokens[begin : begin + self.block]
            node = blocks[count - 1] if count else self.tree.root(regime)
            ends = list(self._ends(node, rest)) if isinstance(node, Node) else []
            if names:
                files = enumerate(names[count].places(rest[: self.block - 1]))
                ends += [(length, name) for length, name in files if self._has(name, read)]
            if not self.recurrent:
                ends.append((0, None))
            if ends:
                length, holder = max(ends, key=lambda end: end[0])
                return _Place(begin + length, count, holder if length or self.recurrent else None)
        return None

    def _ends(self, node: Node, rest: Tokens) -> Iterator[tuple[int, Entry | str | None]]:
        """How many of the tokens after a block each entry that follows it has, and may be gone on from."""
        if self.recurrent:
            for leaf in node.leaves.values():
                if rest[: len(leaf.tokens)] == leaf.tokens:
                    yield len(leaf.tokens), leaf
            return
        for entry in node.following:
            yield _alike(entry.tokens, rest), entry

    def _way(self, tokens: Tokens, blocks: list[Node | str], place: _Place) -> _Way:
        holders: list[Entry | str] = [*blocks[: place.blocks]]
        if place.rest is not None:
            holders.append(place.rest)
        ends = [min((at + 1) * self.block, place.place) for at in range(len(holders))]
        return _Way(place, holders, [tokens[at * self.block : end] for at, end in enumerate(ends)])

    def _take(self, way: _Way, regime: int, read: Read) -> list[tuple[int, Kept]]:
        """What leads to a place, which serves from here on. Of files, what was read goes to RAM, too."""
        parent: Node | None = self.tree.root(regime)
        kept: list[tuple[int, Kept]] = []
        last: Entry | None = None
        for holder, own in zip(way.holders, way.parts, strict=True):
            entry: Entry | None = None if isinstance(holder, str) else holder
            found = read[holder] if isinstance(holder, str) else holder.kept
            assert found is not None
            if isinstance(holder, str) and parent is not None:
                whole = len(kept) < way.place.blocks
                entry = Node(parent, own, found, holder) if whole else Leaf(parent, own, found, holder)
                self.add(entry, on_disk=True)
            kept.append((len(kept) * self.block, found))
            last = last if entry is None or entry.gone else entry
            parent = entry if isinstance(entry, Node) and not entry.gone else None
        if last is not None:
            self.tree.use(last)
        from_disk = sum(map(len, way.files.values()))
        self.taken["disk"] += from_disk
        self.taken["ram"] += way.place.place - from_disk
        return kept

    def _measure(self, kept: Kept, tokens: int) -> None:
        """Note what a token and a place take."""
        if tokens:
            self._token_bytes = sum(part.keys.nbytes + part.values.nbytes for part in kept.tokens) // tokens
        if kept.states:
            self._state_bytes = sum(state.tensor.nbytes for state in kept.states)


def _alike(ours: Tokens, theirs: Tokens) -> int:
    """How many tokens both begin with."""
    for at, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return at
    return min(len(ours), len(theirs))
