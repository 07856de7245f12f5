"""What a GPU's queues and the CPU did, as measured, expert by expert."""

from __future__ import annotations

from collections.abc import Iterator

from dali.replay.explain.clocked import LANES, cut
from dali.replay.explain.slices import Piece
from dali.runtime.journal import Note


def from_events(note: Note) -> Iterator[Piece]:
    """The spans of a device that names all experts of each. Those of several are cut into each's by what they would take, as only
    all together are measured."""
    for stream, label, start, end in note.spans:
        word, _, which = label.partition(" ")
        layer, _, named = which.partition(".")
        if not named:
            yield LANES[stream], int(layer), word, start, end
            continue
        mine = (
            {"cpu": note.costs.cpu, "experts": note.costs.gpu}.get(word) if int(layer) == note.layer else None
        )
        takes = [
            (expert, 1.0 if mine is None else mine[note.workload[expert]])
            for expert in map(int, named.split(","))
        ]
        yield from cut(LANES[stream], int(layer), takes, start, end)
