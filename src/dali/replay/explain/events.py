"""Chrome's trace events, which ui.perfetto.dev shows: a track a lane, and counters."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dali.replay.explain.slices import LayerStep

TRACKS = {"cpu": "CPU", "gpu": "accelerator", "link": "link", "disk": "disk"}


def slices(spans: Sequence[tuple[str, str, float, float, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Events of (track, name, start, end, arguments), times in seconds."""
    tracks = {track: number for number, track in enumerate(dict.fromkeys(span[0] for span in spans), 1)}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": number, "args": {"name": track}}
        for track, number in tracks.items()
    ]
    for track, name, start, end, told in spans:
        event = {"ph": "X", "name": name, "pid": 1, "tid": tracks[track]}
        event |= {"ts": 1e6 * start, "dur": 1e6 * (end - start)}
        events.append(event | {"args": dict(told)} if told else event)
    return events


def counter(name: str, at: float, values: Mapping[str, float]) -> dict[str, Any]:
    """An event that sets counters, `at` in seconds."""
    return {"ph": "C", "name": name, "pid": 1, "tid": 0, "ts": 1e6 * at, "args": dict(values)}


def document(events: Iterable[Mapping[str, Any]], said: str | None = None) -> str:
    """A file of events; `said`: what is to be known of them."""
    whole: dict[str, Any] = {"traceEvents": list(events), "displayTimeUnit": "ms"}
    return json.dumps(whole | {"otherData": {"about": said}} if said else whole, indent=1) + "\n"


def explained(steps: Sequence[LayerStep], said: str) -> str:
    """Layers' steps as such a file."""
    spans = [
        (
            TRACKS[one.lane],
            f"{one.told['layer']}.{one.what}" if "expert" in one.told else one.what,
            one.start,
            one.end,
            one.told,
        )
        for lane in TRACKS
        for step in steps
        for one in step.slices
        if one.lane == lane
    ]
    counters = [counter("experts", step.began, step.counts) for step in steps]
    return document([*slices(spans), *counters], said)
