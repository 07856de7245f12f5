"""How fast a model will be by a plan: pure functions of sizes and a profile. Every time from here is modelled.

    a decoding step = step + head + layers x (layer + linears + attention) + MoE layers x (router + top_k experts)
    a prompt's step = the same with prompt_layer in layer's place, and passes over its activations

as `hardware.host` and `hardware.cost` have their times. From disk, the experts of a token that RAM does not hold are
read: at the slow end as many as if routing were even (hits = the share of experts in RAM), at the fast end as if half
of that share's misses were caught (hits = its square root), and in between by the mean. A decoding layer's reads begin
when its router has spoken, and go as `hardware.disk_lane` has them. Of a step that wants nearly all experts, as a
prompt's does, twice as many as may be under way go on beside the dense part, as many while those in RAM are computed,
and then each as another has come; what is computed beside reads is slower by as much as was measured. With an
accelerator its experts and the CPU's are computed side by side, and the dense part is the accelerator's; what it lacks
is computed by the CPU or copied, whichever is sooner.

An interval is what is predicted divided and multiplied by 1 + error: MEASURED where tables were measured here, plus their
spread; ROUGH where nobody measured, and for models that are not packed: torch computes them part by part, which was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dali.doctor.plan import DISK, KERNELS, Plan, cost_model
from dali.doctor.sizes import ITEM, ModelSizes
from dali.hardware import disk_lane, rates
from dali.hardware.cost import disk_costs
from dali.hardware.host import NORMED, ROTATED, SUMMED, HostCosts
from dali.hardware.profile import Profile

PROMPT = 512  # tokens
TYPICAL = 2048  # tokens of a conversation
WIDE = 0.75  # of a layer's experts: a step that wants more reads on for the next layer (src/native/disk/expert_cache.h)
MEASURED, ROUGH = 0.25, 1.0  # errors of predictions, as shares


class Interval(NamedTuple):
    """What is expected, and what it will hardly be below or above."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True)
class Prediction:
    """Tokens a second of decoding (all sequences together) and of a prompt, and seconds of loading the second time, None where
    the profile does not say how fast a disk is."""

    decode: Interval
    prompt: Interval
    load: Interval | None


class _Misses(NamedTuple):
    """Shares of a token's experts that are not in RAM."""

    few: float
    expected: float
    many: float


def predict(
    sizes: ModelSizes,
    profile: Profile,
    plan: Plan,
    context: int | None = None,
    batch: int = 1,
    prompt: int = PROMPT,
    hits: float | None = None,
) -> Prediction:
    """How fast `plan` is. context: tokens that a sequence has by then, None for TYPICAL, if it may have them; batch: sequences
    side by side; prompt: tokens of the prompt; hits: the share of experts that steps find in RAM, None: as the plan has room for
    them. UsageError: the plan is by disk, and the profile does not say how fast that is."""
    tokens = min(plan.context, TYPICAL) if context is None else context
    profile = plan.device.profile if plan.device is not None and plan.device.simulated else profile
    error = _error(profile) if plan.packed else ROUGH
    speed = _Speed(sizes, profile, plan)
    misses = _misses(plan) if hits is None else _Misses(1 - hits, 1 - hits, 1 - hits)
    step = [speed.step(batch, batch * tokens, share) for share in misses]
    decode = Interval(*(batch / seconds for seconds in (step[2], step[1], step[0])))
    prefill = prompt / speed.prompt(prompt, misses.many)
    load = speed.load()
    return Prediction(
        _widened(decode, error),
        _widened(Interval(prefill, prefill, prefill), error),
        None if load is None else _widened(Interval(load, load, load), error),
    )


def _misses(plan: Plan) -> _Misses:
    if plan.where != DISK or plan.slots >= plan.all_slots:
        return _Misses(0.0, 0.0, 0.0)
    held = plan.slots / plan.all_slots
    few, many = 1 - math.sqrt(held), 1 - held
    return _Misses(few, (few + many) / 2, many)


def _error(profile: Profile) -> float:
    if profile.label != "measured":
        return ROUGH
    spreads = [figure.spread for figure in profile.figures.values()] + [
        table.spread for table in profile.tables
    ]
    return MEASURED + min(max(spreads, default=0.0), MEASURED) + profile.error


def _widened(interval: Interval, error: float) -> Interval:
    return Interval(interval.low / (1 + error), interval.expected, interval.high * (1 + error))


def _pairs(before: int, tokens: int, window: int | None) -> int:
    """Pairs of a token and one that it attends to, itself included, of so many tokens after those before."""
    first, last = before + 1, before + tokens
    if window is None or last <= window:
        return (first + last) * tokens // 2
    inside = max(window - before, 0)
    return (first + before + inside) * inside // 2 + window * (tokens - inside)


def _between(seconds: Sequence[float], tokens: float) -> float:
    """Of so many tokens on average, by the times of whole ones."""
    below = min(int(tokens), len(seconds) - 2)
    return seconds[below] + (seconds[below + 1] - seconds[below]) * (tokens - below)


class _Speed:
    """Seconds of the parts of a step."""

    def __init__(self, sizes: ModelSizes, profile: Profile, plan: Plan) -> None:
        self.sizes, self.profile, self.plan = sizes, profile, plan
        self.host = HostCosts(profile)
        self.on_device = plan.device is not None
        self.costs = cost_model(sizes, plan.layouts, profile, PROMPT * sizes.top_k, self.on_device)
        self.states = sizes.states(plan.dtype, plan.in_q8)

    def step(self, tokens: int, attended: int, missing: float) -> float:
        """Of a decoding step of so many sequences, which attend to so many tokens in all."""
        seen = [min(attended, tokens * kept.window) if kept.window else attended for kept in self.sizes.kept]
        nbytes = sum(each * count for (each, _), count in zip(self.states.layers, seen, strict=True))
        scores = sum(kept.queries * count for kept, count in zip(self.sizes.kept, seen, strict=True))
        dense = self.dense(tokens, tokens) + self.host.decoding_attention(nbytes, scores)
        dense += (tokens - 1) * self.host.sequence
        return dense + self.sizes.moe_layers * self.from_disk(tokens, missing, dense)

    def prompt(self, tokens: int, missing: float) -> float:
        """Of a prompt of so many tokens, in steps of a chunk each."""
        chunk = self.plan.chunk
        return sum(
            self._chunk(before, min(chunk, tokens - before), missing) for before in range(0, tokens, chunk)
        )

    def _chunk(self, before: int, tokens: int, missing: float) -> float:
        """Of a step of so many tokens of a prompt, after those before."""
        flops = sum(
            2 * kept.queries * (kept.key + kept.value) * _pairs(before, tokens, kept.window)
            for kept in self.sizes.kept
        )
        values = tokens * sum(kept.queries * kept.key for kept in self.sizes.kept)
        layer = 0.0 if self.on_device else self.host.prompt_layer
        dense = self.dense(tokens, 1, layer) + self.host.prompt_attention(flops, values)
        if not self.on_device:
            dense += self.passes(tokens)
        return dense + self.sizes.moe_layers * self.from_disk(tokens, missing, dense)

    def passes(self, tokens: int) -> float:
        """Over the activations of a prompt's step: two norms and sums a layer, keys and queries turned and perhaps normed,
        experts' rows summed."""
        sizes, host, dtype = self.sizes, self.host, self.plan.dtype
        item = ITEM[dtype] * tokens
        hidden = 2 * host.passes(sizes.hidden * item, NORMED + SUMMED, dtype)
        turned = sum(
            host.passes(heads * kept.key * item, ROTATED + NORMED * kept.normed, dtype)
            for kept in sizes.kept
            for heads in (kept.heads, kept.queries)
        )
        summed = host.summed_rows(sizes.hidden, sizes.top_k, tokens)
        return sizes.layers * hidden + turned + sizes.moe_layers * summed

    def dense(self, tokens: int, logits: int, layer: float | None = None) -> float:
        """Of everything beside routed experts and attention, with the logits of so many tokens; `layer`: what a layer takes by
        itself, None: while decoding."""
        sizes, plan = self.sizes, self.plan
        if self.on_device:
            weights = sum(one.elements for one in sizes.dense if one.kind != "embedding")
            layer = self.costs.dense(plan.dense // sizes.layers, weights // sizes.layers, tokens, KERNELS)
            return sizes.layers * (layer + self.costs.sync)
        seconds = self.host.step + sizes.layers * (self.host.layer if layer is None else layer)
        head = False
        for one in sizes.dense:
            if one.kind in ("linear", "router"):
                if one.kind == "router":
                    seconds += self.host.router(one.columns, one.rows, tokens)
                    continue
                format, nbytes = sizes.read_dense(one, plan.dtype, plan.packed)
                head = head or one.head
                rows = logits if one.head else tokens
                seconds += self.host.linear(format, one.rows, one.columns, nbytes, rows)
        if not head:  # it is the embeddings' matrix
            seconds += max(
                (self._head(one.rows, one.columns, logits) for one in sizes.dense if one.kind == "embedding"),
                default=0.0,
            )
        return seconds

    def _head(self, rows: int, columns: int, tokens: int) -> float:
        nbytes = rows * columns * (2 if self.plan.dtype == "bfloat16" else 1 if self.plan.packed else 4)
        return self.host.linear("w8" if self.plan.packed else "bf16", rows, columns, nbytes, tokens)

    def experts(self, tokens: int) -> float:
        """Of a layer's routed experts, routed to evenly."""
        active, each = self._active(tokens)
        costs = self.costs.costs
        if not self.on_device:
            return active * _between(costs.cpu, each)
        there = self.plan.resident / self.plan.all_slots
        inside, outside = active * there, active * (1 - there)
        gpu = inside * (_between(costs.gpu, each) + costs.launch)
        by_cpu = max(gpu, outside * _between(costs.cpu, each) + (costs.handover if outside > 0 else 0.0))
        by_link = max(gpu + outside * (_between(costs.gpu, each) + costs.launch), outside * costs.link)
        return min(by_cpu, by_link)

    def _active(self, tokens: int) -> tuple[float, float]:
        """Experts that some of so many tokens are routed to, evenly, and how many tokens each of them gets on average."""
        sizes = self.sizes
        active = sizes.experts * (1 - (1 - sizes.top_k / sizes.experts) ** tokens)
        return active, max(tokens * sizes.top_k / active, 1.0)

    def from_disk(self, tokens: int, missing: float, dense: float) -> float:
        """Of a layer's routed experts, of which that share is read, in a step whose dense parts take so long."""
        computed = self.experts(tokens)
        if missing <= 0:
            return computed
        disk, slot, (active, routed) = disk_costs(self.profile), self.plan.slot, self._active(tokens)
        absent, each = active * missing, computed / active
        if active <= WIDE * self.sizes.experts:
            there = computed * (1 - missing)
            counts = range(int(absent) + 2)
            seconds = [disk_lane.layer_seconds(disk, slot, there, count, each) for count in counts]
            return _between(seconds, absent)
        reading, most = disk.each(slot), 2 * disk.depth
        each *= rates.slower(self.profile.tables, "reads", routed)
        ahead = min(absent, most, dense / self.sizes.layers / reading)
        left, there = absent - ahead, (active - absent + ahead) * each
        first = min(left, most)  # no more are asked for until those in RAM are computed
        return max(there, first * reading) + max((left - first) * reading, left * each)

    def load(self) -> float | None:
        """Of reading what RAM holds from disk, once experts are packed; None: nobody knows."""
        if not self.profile.has_disk:
            return None
        held = self.plan.experts if self.plan.where != DISK else self.plan.slots * self.plan.slot
        files = (
            self.sizes.file_bytes if self.sizes.gguf and self.plan.where != DISK else held + self.plan.dense
        )
        return files / disk_costs(self.profile).bandwidth
