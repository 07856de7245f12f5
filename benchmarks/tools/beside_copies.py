"""How much longer the CPU's experts take while a copy to an accelerator reads memory. There is none here: a process reads memory
at the link's pace on a core of its own, and the experts have one core. A copy takes no core, and so costs no more than that."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from typing import Any

from dali.kernels import native
from dali.probe import memory
from dali.probe.experts import at_once, layout_of
from dali.store.arena import Arena
from expert_calls import Calls

POOL, PIECE = 2**28, 2**19  # bytes that the process reads over and over, and between two looks at the clock
TURNS = 15
SETTLING = 2e-3  # seconds until a pace is kept


def _read(bandwidth: float, going: Event, over: Event, seen: Any) -> None:
    """Read so many bytes a second while `going`; `seen`: bytes, and seconds, so far."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    native.set_threads(1)
    pool = Arena(1, POOL)
    pool.all.fill_(1)
    pieces = list(pool.all.flatten().view(-1, PIECE))
    at = 0
    while not over.is_set():
        going.wait(0.05)
        begin = now = time.perf_counter()
        done = 0
        while going.is_set():
            if done <= bandwidth * (now - begin):
                native.read_seconds(pieces[at])
                at, done = (at + 1) % len(pieces), done + PIECE
            now = time.perf_counter()
        seen[0] += done
        seen[1] += now - begin if done else 0.0


@contextmanager
def copying(bandwidth: float) -> Iterator[tuple[Event, Any]]:
    """A process that reads while the event is set."""
    context = multiprocessing.get_context("spawn")
    going, over, seen = context.Event(), context.Event(), context.Array("d", 2)
    process = context.Process(target=_read, args=(bandwidth, going, over, seen), daemon=True)
    process.start()
    try:
        yield going, seen
    finally:
        over.set()
        process.join()


def slower(
    shape: tuple[int, int], formats: Sequence[str], tokens: Sequence[int], bandwidths: Sequence[float]
) -> list[dict[str, Any]]:
    """Of experts of that shape, by format, tokens and bandwidth: how many times as long they take beside a copy."""
    everywhere, rows = os.sched_getaffinity(0), []
    os.sched_setaffinity(0, {min(everywhere)})
    pool = Arena(1, POOL)
    pool.all.fill_(1)
    try:
        with memory.threads(1):
            for bandwidth in bandwidths:
                with copying(bandwidth) as (going, seen):
                    _wait_for(going, lambda: seen[0] > 0)
                    for format in formats:
                        calls = Calls(pool, layout_of(format, *shape))
                        for each in tokens:
                            row = {"format": format, "tokens": each, "bandwidth": bandwidth}
                            rows.append({**row, "slower": round(_ratio(calls, each, going), 4)})
                    found = seen[0] / seen[1]
                for row in rows[-len(formats) * len(tokens) :]:
                    row["read"] = round(found)
    finally:
        os.sched_setaffinity(0, everywhere)
    return rows


def _wait_for(going: Event, begun: Callable[[], bool]) -> None:
    """Until the process reads at all."""
    while not begun():
        going.set()
        time.sleep(0.05)
        going.clear()
        time.sleep(0.05)


def _ratio(calls: Calls, tokens: int, going: Event) -> float:
    """Calls beside a copy and without one in turn."""
    several, beside, alone = [tokens] * at_once(tokens), [], []
    for _ in range(TURNS):
        for found in (beside, alone):
            going.set() if found is beside else going.clear()
            time.sleep(SETTLING)
            found.append(calls.seconds(several))
    going.clear()
    return statistics.median(beside) / statistics.median(alone)
