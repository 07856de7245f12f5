"""What each lane did in a layer's step, expert by expert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dali.devices.dependencies import COMPUTE, HOST
from dali.hardware.cost import ExpertCosts
from dali.policies.reasons import AHEAD, COPIED, CPU, RESIDENT, Reason
from dali.replay.spans import timeline
from dali.runtime.journal import Journal, Note
from dali.runtime.residency import COPY

# A virtual clock's streams, as lanes. Those of activations are left out: they tell nothing of an expert.
LANES = {HOST: "cpu", COMPUTE: "gpu", COPY: "link", "disk": "disk"}
OF_EXPERTS = {"expert", "experts"}
BACKGROUND = "in the background: ahead of its layer, or to stay"


class Slice(NamedTuple):
    """`what` a lane ("cpu", "gpu", "link" or "disk") did, from `start` to `end` in seconds on the run's clock; an expert's
    number, or a word. `told`: what else there is to say of it."""

    lane: str
    what: str
    start: float
    end: float
    told: Mapping[str, Any]


def no_experts() -> dict[str, int]:
    return dict.fromkeys((CPU, RESIDENT, AHEAD, COPIED, "read"), 0)


@dataclass
class LayerStep:
    """One layer's step. `seconds`: from its start until its outputs are summed. `counts`: its experts by where they were
    computed, and how they got there; `read`: from disk."""

    step: int
    layer: int
    tokens: int
    began: float
    seconds: float
    counts: dict[str, int] = field(default_factory=no_experts)
    slices: list[Slice] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    planned: float = 0.0

    def lane_seconds(self, lane: str, own: bool = False) -> float:
        """In which the lane did experts until the next layer's began; `own`: only those that this layer's step waited for, and
        not what the link copies in the background."""
        mine = (one for one in self.slices if one.lane == lane and not one.told.keys().isdisjoint(OF_EXPERTS))
        return sum(one.end - one.start for one in mine if not own or one.told.get("why") != BACKGROUND)


def explain(journal: Journal, top_k: int) -> list[LayerStep]:
    """Every layer's step that a journal remembers; `top_k`: experts a token."""
    journal.gather()
    return [_explained(note, journal.costs, top_k) for note in journal.notes]


def _explained(note: Note, costs: ExpertCosts, top_k: int) -> LayerStep:
    planned, why = note.reasons(costs)
    tokens = -(-sum(note.workload) // top_k)
    step = LayerStep(note.step, note.layer, tokens, note.began, planned, reasons=why, planned=planned)
    by_expert = {reason.expert: reason for reason in why}

    def told(lane: str, layer: int, expert: int) -> dict[str, Any]:
        if lane == "disk":
            return {"layer": layer, "expert": expert, "why": "not in RAM"}
        if (
            layer != note.layer
            or expert not in by_expert
            or (lane == "link" and expert not in note.plan.fetch)
        ):
            return {"layer": layer, "expert": expert, "why": BACKGROUND}
        reason = by_expert[expert]
        found: dict[str, Any] = {
            "step": note.step,
            "layer": layer,
            "expert": expert,
            "tokens": note.workload[expert],
        }
        if expert in note.read:
            found["from"] = "disk"
        found |= {"why": reason.why, "layer_seconds": planned}
        return found if reason.otherwise is None else found | {"layer_seconds_elsewhere": reason.otherwise}

    if note.spans:
        slices = list(_from_clock(note, costs))
        summed = [span.end for span in note.spans if span.label == f"join {note.layer}"]
        step.seconds = summed[0] - note.began if summed else planned
    else:
        slices = [
            (one.lane, note.layer, one.expert, note.began + one.start, note.began + one.end)
            for one in timeline(note.plan, note.workload, note.view, costs)
            if one.lane != "link" or one.expert in note.plan.fetch
        ]
    for lane, layer, what, start, end in slices:
        said = told(lane, layer, what) if isinstance(what, int) else {"layer": layer}
        step.slices.append(Slice(lane, str(what), start, end, said))
    step.counts["read"] = len(note.read)
    for reason in why:
        step.counts[reason.place] += 1
    return step


Piece = tuple[str, int, Any, float, float]  # lane, layer, expert or word, start, end


def _from_clock(note: Note, costs: ExpertCosts) -> Iterator[Piece]:
    """The spans of a clock, those of several experts in one cut into each's."""
    plan, workload = note.plan, note.workload
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
        yield from _cut(lane, int(layer or note.layer), mine, start, end)


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


def _cut(
    lane: str, layer: int, experts: Sequence[tuple[int, float]], start: float, end: float
) -> Iterator[Piece]:
    """One slice an expert, in proportion to what each takes."""
    pace = (end - start) / (sum(takes for _, takes in experts) or 1.0)
    for expert, takes in experts:
        yield lane, layer, expert, start, start + takes * pace
        start += takes * pace
