"""What each lane did in a layer's step, expert by expert."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dali.policies.reasons import AHEAD, COPIED, CPU, RESIDENT, Reason
from dali.replay.spans import timeline
from dali.runtime.journal import Note

PLACES = {CPU: "on CPU", RESIDENT: "resident", AHEAD: "ahead", COPIED: "copied", "read": "read"}
OF_EXPERTS = {"expert", "experts"}
BACKGROUND = "in the background: ahead of its layer, or to stay"


def microseconds(seconds: float) -> float:
    """To the nanosecond."""
    return round(1e6 * seconds, 3)


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

    @property
    def experts(self) -> int:
        """All of them."""
        return sum(number for place, number in self.counts.items() if place != "read")

    def lane_seconds(self, lane: str, own: bool = False) -> float:
        """In which the lane did experts until the next layer's began; `own`: only those that this layer's step waited for, and
        not what the link copies in the background."""
        mine = (one for one in self.slices if one.lane == lane and not one.told.keys().isdisjoint(OF_EXPERTS))
        return sum(one.end - one.start for one in mine if not own or one.told.get("why") != BACKGROUND)


Piece = tuple[str, int, int | str, float, float]  # lane, layer, expert or word, start, end
Pieces = Callable[[Note], Iterable[Piece]]


def planned(note: Note) -> Iterator[Piece]:
    """What a layer's lanes do as planned: all that is known where nothing was carried out."""
    for one in timeline(note.plan, note.workload, note.view, note.costs):
        if one.lane != "link" or one.expert in note.plan.fetch:
            yield one.lane, note.layer, one.expert, note.began + one.start, note.began + one.end


def explain(notes: Iterable[Note], top_k: int, pieces: Pieces = planned) -> list[LayerStep]:
    """Layers' steps of which a journal took note; `top_k`: experts a token; `pieces`: what their lanes did."""
    return [_explained(note, top_k, pieces) for note in notes]


def _explained(note: Note, top_k: int, pieces: Pieces) -> LayerStep:
    seconds, why = note.reasons()
    tokens = -(-sum(note.workload) // top_k)
    step = LayerStep(note.step, note.layer, tokens, note.began, seconds, reasons=why, planned=seconds)
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
        found |= {"why": reason.why, "planned_us": microseconds(seconds)}
        if reason.otherwise is None:
            return found
        elsewhere = "accelerator" if reason.place == CPU else "CPU"
        return found | {"elsewhere": elsewhere, "elsewhere_us": microseconds(reason.otherwise)}

    if summed := [span.end for span in note.spans if span.label == f"join {note.layer}"]:
        step.seconds = summed[0] - note.began
    for lane, layer, what, start, end in pieces(note):
        said = told(lane, layer, what) if isinstance(what, int) else {"layer": layer}
        step.slices.append(Slice(lane, str(what), start, end, said))
    step.counts["read"] = len(note.read)
    for reason in why:
        step.counts[reason.place] += 1
    return step
