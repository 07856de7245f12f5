"""Calls of the compiled expert kernel as a step makes them: experts with different numbers of tokens, from memory that no cache
holds; and what one expert adds to such a call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dali.kernels import native
from dali.kernels.expert import ExpertLayout
from dali.probe.experts import record
from dali.store.arena import Arena

FEWEST, MOST = 8, 100  # readings of one difference
SECONDS = 0.1  # that they may take, once there are enough of them


class Calls:
    """Of experts of one layout, which lie throughout `pool`."""

    def __init__(self, pool: Arena, layout: ExpertLayout) -> None:
        size = layout.record_bytes
        self._layout, self._count, self._next = layout, pool.nbytes // size, 0
        records = pool.all.flatten()[: self._count * size].view(self._count, size)
        records.copy_(record(layout).expand(self._count, size))
        self._records = list(records)
        self._hidden = self._rows = torch.empty(0, layout.shape.hidden)

    def seconds(self, tokens: Sequence[int]) -> float:
        """Of one call, of experts that have so many tokens each; experts that no call had lately."""
        count, total = len(tokens), sum(tokens)
        if total > len(self._hidden):
            self._hidden = torch.randn(total, self._layout.shape.hidden)
            self._rows = torch.zeros_like(
                self._hidden
            )  # no operation of torch's before each call: its threads go on spinning
        hidden, rows, pairs = self._hidden[:total], self._rows[:total], torch.arange(total)
        offsets = [0]
        for each in tokens:
            offsets.append(offsets[-1] + each)
        experts = [self._records[(self._next + each) % self._count] for each in range(count)]
        self._next = (self._next + count) % self._count
        begin = time.perf_counter()
        native.compute_experts(self._layout, experts, offsets, pairs, hidden, rows)
        return time.perf_counter() - begin

    def median(self, tokens: Sequence[int], readings: int = 5) -> float:
        """Seconds of one call, the median of a few."""
        return statistics.median(self.seconds(tokens) for _ in range(readings)) if tokens else 0.0


@dataclass(frozen=True)
class Added:
    """Seconds that an expert adds to a call: of all readings, and of every other one. `pace`: of an expert of the yardstick."""

    seconds: float
    halves: tuple[float, float]
    pace: float


def added(calls: Calls, tokens: int, beside: Sequence[int], yardstick: Callable[[], float]) -> Added:
    """What an expert with so many tokens adds to a call that has those `beside`: calls with and without it, and the yardstick, in
    turn. Some alike are added at once, so that they take about as long as those beside."""
    copies = min(max(round(sum(beside) / tokens / 2), round(len(beside) / 2), 1), 8)
    bare, more = list(beside), [*beside, *[tokens] * copies]
    began, found = time.perf_counter(), list[tuple[float, float, float]]()
    while len(found) < FEWEST or (len(found) < MOST and time.perf_counter() - began < SECONDS):
        found.append((calls.seconds(more), calls.seconds(bare) if bare else 0.0, yardstick()))

    def difference(readings: Sequence[tuple[float, float, float]]) -> float:
        longer, shorter, _ = (statistics.median(each) for each in zip(*readings, strict=True))
        return (longer - shorter) / copies

    pace = statistics.median(each for *_, each in found)
    return Added(difference(found), (difference(found[::2]), difference(found[1::2])), pace)
