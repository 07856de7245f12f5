"""Replays on the paper's PC: one trace's routing under one model's sizes, and the policies the paper compares.

The paper counts prefetched and swapped experts of models with 8, 64 and 128 experts a layer; under a recorded routing with
another number of experts the same share of them is meant, at least one (`Replays.scaled`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from random import Random
from typing import NamedTuple

import numpy as np

from dali import systems
from dali.errors import UsageError
from dali.hardware import profile as profiles
from dali.policies import Policies, create
from dali.policies.assign import AssignPolicy
from dali.policies.cache import CachePolicy
from dali.policies.lanes import makespan
from dali.policies.plan import ResidencyView
from dali.policies.prefetch import PrefetchPolicy
from dali.policies.signals import Signals
from dali.policies.whole_layers import WholeLayers
from dali.replay.bounds import LeastSeconds, best_assignment
from dali.replay.cells import slots_of
from dali.replay.shapes import shape_of
from dali.replay.steps import Forward, forwards
from dali.replay.timeline import SCRATCH, Timeline, dense_seconds
from dali.replay.traces.public import read
from dali.replay.traces.trace import DECODE, PREFILL, Array, Trace

LENGTH = 64  # tokens of a prompt and of an answer, as in the paper
MOST_TOKENS = 128 * LENGTH  # of a step
ANSWER = 56  # steps of figure 18 (d): 64 generated tokens are 63 steps, as the prompt's step makes the first
LEAST_TOKENS = 1024  # generated in a cell


class Constants(NamedTuple):
    """Of one of the paper's models: routed experts a layer; u_size; experts prefetched in its main results and its breakdown."""

    experts: int
    swaps: int
    prefetched: int
    breakdown: int


MODELS = {
    "deepseek-v2-lite": Constants(64, 8, 4, 4),  # not in the breakdown
    "qwen3-30b-a3b": Constants(128, 8, 4, 8),
    "mixtral-8x7b": Constants(8, 1, 1, 1),
}


class Played(NamedTuple):
    """Of generated tokens alone. `speed`: modelled tokens a second of all sequences; `hits`, `lookups`: [layers]."""

    speed: float
    hits: Array
    lookups: Array

    @property
    def hit_rate(self) -> float:
        return float(self.hits.sum() / self.lookups.sum())


class Replays:
    """One trace under the sizes called `shape` ("own": the recorded model's)."""

    def __init__(self, trace: Trace, shape: str) -> None:
        self.trace = trace
        self.name = shape
        self.shape = shape_of(trace, shape)
        self.model = self.shape.costs(profiles.load("paper"), MOST_TOKENS)

    def slots(self, share: str) -> int:
        return slots_of(share, self.trace)

    def scaled(self, count: float) -> int:
        """That many of the paper's model's experts, as a share of the recorded one's."""
        return max(round(count * self.trace.experts / MODELS[self.name].experts), 1)

    def batches(self, sizes: Sequence[int]) -> list[int]:
        """Those that the trace has enough sequences for."""
        trace = self.trace
        answering = sum(
            DECODE in trace.phase[begin:end]
            for begin, end in zip(trace.seq_ptr[:-1], trace.seq_ptr[1:], strict=True)
        )
        return [size for size in sizes if size <= answering]

    def steps(self, batch: int) -> list[Forward]:
        """The paper's 64 steps, more where the batch is small."""
        return forwards(self.trace, batch, max(LENGTH * batch, LEAST_TOKENS))

    def cache(self, name: str, slots: int, **options: int) -> CachePolicy:
        sizes = {"layers": self.trace.layers, "experts": self.trace.experts, "capacity": slots}
        return create("cache", name, **sizes, **options)

    def paper(self, slots: int, prefetched: int | None) -> Policies:
        """DALI with its constants; `prefetched`: of the recorded model's experts, None for none."""
        kind = {"name": "none"} if prefetched is None else {"name": "residual", "count": prefetched}
        swaps = self.scaled(MODELS[self.name].swaps)
        return Policies(
            create("assign", "greedy"),
            create("prefetch", **kind),  # type: ignore[arg-type]
            self.cache("workload", slots, window=4, swaps=swaps),
        )

    def system(self, name: str, slots: int) -> tuple[Policies, bool]:
        """Policies, and whether dali's guards may rest them."""
        trace = self.trace
        if name == "llama.cpp":
            return whole_layers(trace.layers, trace.experts, slots), False
        if name == "dali-paper":
            return self.paper(slots, self.scaled(MODELS[self.name].prefetched)), False
        system = systems.get(name)
        return system.create(trace.layers, trace.experts, trace.top_k, slots), system.guarded

    def timeline(self, policies: Policies, slots: int, guarded: bool = False) -> Timeline:
        return Timeline(self.trace, policies, self.shape, self.model, slots, guarded)

    def play(self, policies: Policies, slots: int, steps: Sequence[Forward], guarded: bool = False) -> Played:
        return play(self.timeline(policies, slots, guarded), steps)

    def bound(self, slots: int, steps: Sequence[Forward]) -> float:
        """Tokens a modelled second that no policy with so many slots in each layer exceeds."""
        trace, costs = self.trace, self.model.costs
        before = dense_seconds(self.shape, self.model)
        decoding = [step for step in steps if not step.prefill]
        workloads = [
            workload for step in decoding for workload in counts(trace.ids[step.rows], trace.experts).tolist()
        ]
        dense = [before(len(step.rows)) + costs.launch for step in decoding for _ in range(trace.layers)]
        return sum(len(step.rows) for step in decoding) / LeastSeconds(slots, costs).run(workloads, dense)


def load(named: str) -> Replays:
    """TRACE:SHAPE, SHAPE one of the paper's models'. UsageError: it is not."""
    path, _, shape = named.rpartition(":")
    if shape not in MODELS:
        raise UsageError(
            f"{named!r} does not say whose sizes to take.", f"End it with one of :{', :'.join(MODELS)}."
        )
    # Predictions stand for the gate inputs they were made from.
    return Replays(replace(read(path), gate_inputs=None), shape)


def play(timeline: Timeline, steps: Sequence[Forward]) -> Played:
    """Runs on from where the timeline is."""
    result = timeline.result
    seconds, tokens = result.seconds, result.tokens
    hits, lookups = np.zeros_like(result.hits), np.zeros_like(result.lookups)
    for prefill, group in groupby(steps, key=lambda step: step.prefill):
        before = result.hits.copy(), result.lookups.copy()
        timeline.run(list(group))
        if not prefill:
            hits += result.hits - before[0]
            lookups += result.lookups - before[1]
    took = result.seconds - seconds
    return Played((result.tokens - tokens) / took if took else 0.0, hits, lookups)


def prompts(trace: Trace, batch: int, most: int = 8) -> list[Forward]:
    """At most `most` steps of the first 64 recorded tokens of `batch` sequences each, generated ones standing for a prompt's."""
    steps = []
    for first in range(0, trace.sequences - batch + 1, batch)[:most]:
        chosen = range(first, first + batch)
        rows = [np.arange(*trace.seq_ptr[one : one + 2])[:LENGTH] for one in chosen]
        sequences = np.repeat(chosen, [len(one) for one in rows])
        steps.append(Forward(np.concatenate(rows), sequences, True))
    return steps


def side_by_side(trace: Trace, batch: int) -> list[list[Forward]]:
    """For each `batch` of the sequences that last that long: their prompts, then ANSWER steps."""
    answers, begun = {}, {}
    for one, (begin, end) in enumerate(zip(trace.seq_ptr[:-1], trace.seq_ptr[1:], strict=True)):
        rows = np.arange(begin, end)
        answer = rows[trace.phase[rows] == DECODE]
        if len(answer) >= ANSWER:
            answers[one], begun[one] = answer[:ANSWER], rows[trace.phase[rows] == PREFILL]
    groups = []
    for first in range(0, len(answers) - batch + 1, batch):
        chosen = list(answers)[first : first + batch]
        steps = [Forward(begun[one], np.full(len(begun[one]), one), True) for one in chosen]
        steps = [step for step in steps if len(step.rows)]
        columns = np.stack([answers[one] for one in chosen], axis=1)
        groups.append([*steps, *[Forward(rows, np.array(chosen), False) for rows in columns]])
    return groups


def counts(ids: Array, experts: int) -> Array:
    """ids [tokens, layers, k] -> tokens of each expert [layers, experts]."""
    return np.stack([np.bincount(ids[:, layer].ravel(), minlength=experts) for layer in range(ids.shape[1])])


def busiest(workload: Array, count: int) -> Array:
    """The experts of most tokens, ties to the lower id: [layers, count]."""
    found: Array = np.argsort(-workload, axis=1, kind="stable")[:, :count]
    return found


def whole_layers(layers: int, experts: int, slots: int) -> Policies:
    """llama.cpp's --n-cpu-moe: the first layers on the CPU, on the accelerator as many whole ones as all slots together hold."""
    on_cpu = layers - layers * slots // experts
    cache = WholeLayers(layers, experts, on_cpu)
    return Policies(create("assign", "layerwise", cpu_layers=on_cpu), create("prefetch", "none"), cache)


class RandomPrefetch(PrefetchPolicy):
    """`count` random absent experts of the next layer."""

    def __init__(self, layers: int, experts: int, count: int) -> None:
        super().__init__(count=count)
        self._layers, self._experts, self._random = layers, experts, Random(0)

    def foresee(
        self, layer: int, workload: Sequence[int], signals: Signals | None = None
    ) -> Sequence[tuple[int, Sequence[float]]]:
        if layer + 1 == self._layers:
            return []
        return [(layer + 1, [1.0 - self._random.random() for _ in range(self._experts)])]


class Share(NamedTuple):
    """The time of the best plans of dali.replay.bounds.best_assignment, and that below which none can be (LeastSeconds), over the
    time of a policy's plans. The optimum's share lies between."""

    found: float
    least: float


def shares(
    replays: Replays, steps: Sequence[Forward], policies: Mapping[str, AssignPolicy], every: int
) -> dict[str, Share]:
    """The experts' time in every `every`-th layer event, one resident expert a layer and nothing in flight."""
    trace, costs = replays.trace, replays.model.costs
    residents = [replays.cache("static", 1).initial(layer) for layer in range(trace.layers)]
    least = LeastSeconds(1, costs)
    took = dict.fromkeys(policies, 0.0)
    best = bound = 0.0
    events = [(step, layer) for step in steps for layer in range(trace.layers)]
    for step, layer in events[::every]:
        workload = counts(trace.ids[step.rows, layer : layer + 1], trace.experts)[0].tolist()
        view = ResidencyView(frozenset(residents[layer]), slots=SCRATCH)
        for name, policy in policies.items():
            took[name] += makespan(policy.assign(layer, workload, view, costs), workload, view, costs)
        best += best_assignment(workload, view, costs).seconds
        bound += least.makespan(workload)
    return {name: Share(best / seconds, bound / seconds) for name, seconds in took.items()}
