"""When the CPU and a GPU's queues did what, on the host's clock: a trace for ui.perfetto.dev.

A GPU's times are those of events in its queues. All are told from one event that the host waited for, whose time by the host's
clock is known to the microseconds that it takes to hear of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dali.replay.explain import events


def timed_event() -> Any:
    return torch.cuda.Event(enable_timing=True)


def queue_at(address: int) -> Any:
    """The queue that the native layers know by this address."""
    return torch.cuda.ExternalStream(address)


@dataclass(frozen=True)
class Span:
    """What a lane did, from and to seconds after the timeline's start."""

    lane: str
    name: str
    begin: float
    end: float


class Timeline:
    """Begins now, when nothing may be queued."""

    def __init__(self) -> None:
        self._base = timed_event()
        before = time.perf_counter()
        self._base.record()
        self._base.synchronize()
        self._zero = (before + time.perf_counter()) / 2
        self._marks: dict[str, list[tuple[str, Any]]] = {}
        self._spans: list[Span] = []

    def mark(self, lane: str, name: str, queue: Any = None) -> None:
        """All that is in the queue up to here, since the lane's last mark, is what `name` says; torch's queue without `queue`."""
        event = timed_event()
        if queue is None:
            event.record()
        else:
            event.record(queue)
        self._marks.setdefault(lane, []).append((name, event))

    def on_host(self, lane: str, name: str, work: Callable[[], object]) -> None:
        begin = time.perf_counter()
        work()
        self._spans.append(Span(lane, name, begin - self._zero, time.perf_counter() - self._zero))

    def spans(self) -> list[Span]:
        """All of them, once everything is over. A lane's first mark begins its first span."""
        found = list(self._spans)
        for lane, marks in self._marks.items():
            times = [1e-3 * self._base.elapsed_time(event) for _, event in marks]
            names = [name for name, _ in marks[1:]]
            found += [Span(lane, *part) for part in zip(names, times, times[1:], strict=False)]
        return sorted(found, key=lambda span: span.begin)

    def write(self, path: Path) -> None:
        """The spans as Chrome's trace events, a row a lane."""
        spans = [(span.lane, span.name, span.begin, span.end, {}) for span in self.spans()]
        path.write_text(events.document(events.slices(spans)), encoding="utf-8")
