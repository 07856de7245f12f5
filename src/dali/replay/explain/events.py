"""Chrome's trace events, which ui.perfetto.dev shows: a track a lane, one of layers within steps, and counters.

Perfetto counts in whole nanoseconds and drops a slice that begins before the one before it has ended. Times are rounded to these
here, begin and end and not begin and length, so that what follows without a gap does so there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from dali.replay.explain.slices import PLACES, LayerStep, Slice, microseconds

LAYERS = "layers"
TRACKS = {"cpu": "CPU", "gpu": "accelerator", "link": "link", "disk": "disk"}
PROCESS = 1
FIRST_TRACK = PROCESS + 1  # the track of the process's own number would be called its main thread
Drawn = tuple[
    str, str, float, float, Mapping[str, Any]
]  # track, name, start, end, arguments; times in seconds


def slices(spans: Sequence[Drawn], process: str = "dali") -> list[dict[str, Any]]:
    """Their events; those of a track lie within one another or apart, and begin later where they did not."""
    tracks = {
        track: number for number, track in enumerate(dict.fromkeys(span[0] for span in spans), FIRST_TRACK)
    }
    events = [_name("process_name", {}, process)]
    events += [_name("thread_name", {"tid": number}, track) for track, number in tracks.items()]
    around: dict[str, list[int]] = {
        track: [] for track in tracks
    }  # when the slices end that the next may lie within
    for track, name, start, end, told in sorted(spans, key=lambda span: (span[2], -span[3])):
        began, ended, outer = round(1e9 * start), round(1e9 * end), around[track]
        while outer and outer[-1] <= began:
            outer.pop()
        while outer and outer[-1] < ended:  # by the error of a clock that measured both
            began = outer.pop()
        outer.append(ended)
        event = {"ph": "X", "name": name, "pid": PROCESS, "tid": tracks[track]}
        event |= {"ts": began / 1000, "dur": (ended - began) / 1000}
        events.append(event | {"args": dict(told)} if told else event)
    return events


def _name(kind: str, of: Mapping[str, int], name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": PROCESS, **of, "args": {"name": name}}


def counter(name: str, at: float, values: Mapping[str, float]) -> dict[str, Any]:
    """An event that sets counters, `at` in seconds."""
    event = {"ph": "C", "name": name, "pid": PROCESS, "tid": 0, "ts": round(1e9 * at) / 1000}
    return event | {"args": dict(values)}


def document(events: Iterable[Mapping[str, Any]], said: str | None = None) -> str:
    """A file of events; `said`: what is to be known of them."""
    whole: dict[str, Any] = {"traceEvents": list(events), "displayTimeUnit": "ns"}
    told = whole | {"otherData": {"about": said}} if said else whole
    return json.dumps(told, indent=1, allow_nan=False) + "\n"


def explained(steps: Sequence[LayerStep], said: str) -> str:
    """Layers' steps as such a file, which begins at 0; `said`: what is to be known of them."""
    zero = min(
        [*(step.began for step in steps), *(one.start for step in steps for one in step.slices)], default=0.0
    )
    spans = [(track, name, start - zero, end - zero, told) for track, name, start, end, told in _all(steps)]
    used = [place for place in PLACES if any(step.counts[place] for step in steps)]
    counters = [
        counter("experts", step.began - zero, {PLACES[place]: step.counts[place] for place in used})
        for step in steps
    ]
    return document([*slices(spans, f"dali: experts. {said}"), *counters], said)


def _all(steps: Sequence[LayerStep]) -> Iterator[Drawn]:
    yield from _layers(steps)
    for lane, track in TRACKS.items():
        for step in steps:
            yield from (
                (track, _slice_name(one), one.start, one.end, one.told)
                for one in step.slices
                if one.lane == lane
            )


def _slice_name(one: Slice) -> str:
    if "expert" in one.told:
        return f"expert {one.told['expert']}, layer {one.told['layer']}"
    return f"layer {one.told['layer']}" if "experts" in one.told else one.what


def _layers(steps: Sequence[LayerStep]) -> Iterator[Drawn]:
    """Steps, and their layers within them. A layer ends where the next begins, if it has not before."""
    ends = [step.began + step.seconds for step in steps]
    ends[:-1] = [
        max(min(end, later.began), step.began)
        for end, step, later in zip(ends, steps, steps[1:], strict=False)
    ]
    for number, group in groupby(zip(steps, ends, strict=True), key=lambda each: each[0].step):
        layers = list(group)
        told = {"tokens": layers[0][0].tokens, "experts": sum(step.experts for step, _ in layers)}
        yield LAYERS, f"step {number}", layers[0][0].began, layers[-1][1], told
        for step, end in layers:
            yield LAYERS, f"layer {step.layer}", step.began, end, _layer(step)


def _layer(step: LayerStep) -> dict[str, Any]:
    """What there is to say of a layer's step as a whole: how many of its experts, and which, were where."""
    told: dict[str, Any] = {"step": step.step, "layer": step.layer, "tokens": step.tokens}
    told |= {PLACES[place]: number for place, number in step.counts.items() if number}
    for reason in step.reasons:
        which = f"experts {PLACES[reason.place]}"
        told[which] = f"{told[which]}, {reason.expert}" if which in told else str(reason.expert)
    return told | ({"planned_us": microseconds(step.planned)} if step.reasons else {})
