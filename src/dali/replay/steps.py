"""The forward steps of a replay: which recorded tokens share one.

A batch of B takes one token of each of B sequences a step. A sequence joins as soon as another ends; its prompt is computed
first, on its own and in chunks, as a live run would have it before the answer begins. Steps that fewer than B sequences are left
for are no steps of that batch size and are left out.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from dali.errors import UsageError, parameter
from dali.replay.traces.trace import DECODE, PREFILL, Array, Trace

CHUNK = 512  # tokens of a prompt in one step, at most


class Forward(NamedTuple):
    """One forward step. `rows` [tokens] of the trace, each of the sequence in `sequences` [tokens]; all of a prompt, or none."""

    rows: Array
    sequences: Array
    prefill: bool


def forwards(trace: Trace, batch: int, tokens: int | None = None) -> list[Forward]:
    """The steps of a batch size, until `tokens` generated tokens are done. UsageError: the trace has too few sequences."""
    answers = [_rows(trace, sequence, DECODE) for sequence in range(trace.sequences)]
    answering = sum(len(rows) > 0 for rows in answers)
    if batch > answering:
        raise UsageError(
            f"A batch of {batch} needs as many sequences; the trace {trace.name} has {answering} with generated tokens.",
            f"Use {parameter('batch')} {answering} or fewer."
            if answering
            else "Record some with `dali trace -n 128`.",
        )
    steps: list[Forward] = []
    waiting, live = deque(range(trace.sequences)), list[tuple[int, int]]()  # live: (sequence, tokens done)
    done = 0
    while tokens is None or done < tokens:
        while waiting and len(live) < batch:
            sequence = waiting.popleft()
            prompt = _rows(trace, sequence, PREFILL)
            for begin in range(0, len(prompt), CHUNK):
                rows = prompt[begin : begin + CHUNK]
                steps.append(Forward(rows, np.full(len(rows), sequence), True))
            if len(answers[sequence]):
                live.append((sequence, 0))
        if len(live) < batch:
            return steps
        rows = np.array([answers[sequence][at] for sequence, at in live])
        steps.append(Forward(rows, np.array([sequence for sequence, _ in live]), False))
        done += batch
        live = [(sequence, at + 1) for sequence, at in live if at + 1 < len(answers[sequence])]
    return steps


def _rows(trace: Trace, sequence: int, phase: int) -> Array:
    begin, end = trace.seq_ptr[sequence : sequence + 2]
    rows: Array = begin + np.flatnonzero(trace.phase[begin:end] == phase)
    return rows
