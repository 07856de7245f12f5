"""The rules of Chrome's trace events, as ui.perfetto.dev reads them.

Perfetto's own reader takes times in whole nanoseconds, and of a track's slices drops each that begins within another and ends
after it. Files of runs were given to it (its trace processor 52); what it found fault with is a rule here.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import Any


def read(text: str) -> list[dict[str, Any]]:
    """The events of a file that follows the rules."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    whole = json.loads(text, parse_constant=refuse)
    assert whole["displayTimeUnit"] in ("ms", "ns")
    found = whole["traceEvents"]
    for event in found:
        assert event["ph"] in ("M", "X", "C")
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event.get("args", {}), dict)
        if event["ph"] != "M":
            whole_nanoseconds(event["ts"])
    tracks = {
        event["tid"]: event["args"]["name"] for event in of(found, "M") if event["name"] == "thread_name"
    }
    assert len(set(tracks.values())) == len(tracks)
    lanes = defaultdict(list)
    for event in of(found, "X"):
        assert event["tid"] in tracks
        assert event["tid"] != event["pid"]  # else it is shown as the process's main thread
        begin, length = whole_nanoseconds(event["ts"]), whole_nanoseconds(event["dur"])
        lanes[event["tid"]].append((begin, -(begin + length)))
    for spans in lanes.values():
        check_nested(sorted(spans))
    for event in of(found, "C"):
        assert all(isinstance(value, int | float) for value in event["args"].values())
    assert [event["args"]["name"] for event in found if event["name"] == "process_name"]
    return found


def of(found: list[dict[str, Any]], phase: str) -> list[dict[str, Any]]:
    return [event for event in found if event["ph"] == phase]


def whole_nanoseconds(microseconds: float) -> int:
    assert microseconds >= 0
    assert math.isclose(microseconds * 1000, round(microseconds * 1000), rel_tol=1e-12, abs_tol=1e-6)
    return round(microseconds * 1000)


def check_nested(spans: list[tuple[int, int]]) -> None:
    open_until: list[int] = []
    for begin, end in spans:
        while open_until and open_until[-1] <= begin:
            open_until.pop()
        assert not open_until or -end <= open_until[-1], "a slice begins within another and ends after it"
        open_until.append(-end)
