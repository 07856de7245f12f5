"""What a virtual clock's streams did, expert by expert."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dali.devices.dependencies import COMPUTE, HOST
from dali.replay.explain.slices import Piece
from dali.runtime.journal import Note
from dali.runtime.modelled_reads import DISK
from dali.runtime.residency import COPY

# The streams as lanes. Those of activations are left out: they tell nothing of an expert.
LANES = {HOST: "cpu", COMPUTE: "gpu", COPY: "link", DISK: "disk"}


def from_clock(note: Note) -> Iterator[Piece]:
    """The spans of a clock, those of several experts in one cut into each's."""
    plan, workload, costs = note.plan, note.workload, note.costs
    cpu = [(expert, costs.cpu[workload[expert]]) for expert in plan.cpu]
    gpu = [(expert, costs.gpu[workload[expert]]) for expert in plan.gpu]
    firsts = {span.label for span in note.spans if span.stream == COPY}
    for stream, label, start, end in note.spans:
        if (lane := LANES.get(stream)) is None or end <= start:
            continue
        word, _, which = label.partition(" ")
        layer, _, first = which.partition(".")
        if word == "cpu" and layer == str(note.layer):
            mine = _within(cpu, end - start)
            cpu = cpu[len(mine) :]
        elif word == "experts" and layer == str(note.layer):
            at = next((at for at, (expert, _) in enumerate(gpu) if expert == int(first)), len(gpu))
            mine = _within(gpu[at:], end - start - costs.launch)
        elif word == "copy":
            mine = [(int(first), 1.0)]
            if layer == str(note.layer) and int(first) in plan.fetch:
                mine += [(expert, 1.0) for expert in _together(plan.fetch, int(first), layer, firsts)]
        elif word == "read":
            mine = [(int(first), 1.0)]
        else:
            yield lane, note.layer, word, start, end
            continue
        yield from cut(lane, int(layer or note.layer), mine, start, end)


def _within(experts: Sequence[tuple[int, float]], seconds: float) -> list[tuple[int, float]]:
    """The first of them, which take so long together."""
    found: list[tuple[int, float]] = []
    left = seconds
    for expert, takes in experts:
        if found and left < takes / 2:  # the clock's sums are not to the last bit
            break
        found.append((expert, takes))
        left -= takes
    return found


def _together(fetch: Sequence[int], first: int, layer: str, labels: set[str]) -> Iterator[int]:
    """What was copied with `first`: those after it, up to one that begins a copy of its own."""
    for expert in fetch[fetch.index(first) + 1 :]:
        if f"copy {layer}.{expert}" in labels:
            return
        yield expert


def cut(
    lane: str, layer: int, experts: Sequence[tuple[int, float]], start: float, end: float
) -> Iterator[Piece]:
    """One slice an expert, in proportion to what each takes."""
    pace = (end - start) / (sum(takes for _, takes in experts) or 1.0)
    for expert, takes in experts:
        yield lane, layer, expert, start, start + takes * pace
        start += takes * pace
