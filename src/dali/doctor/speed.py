"""How fast a model will be by a plan: pure functions of sizes and a profile. Every time from here is modelled.

    a decoding step = step + head + layers x (layer + linears + attention) + MoE layers x (router + top_k experts)
    a prompt's step = the same with prompt_layer in layer's place, and passes over its activations

as `hardware.host` and `hardware.cost` have their times. From disk, the experts of a token that neither RAM nor an accelerator
holds are read: at the slow end as many as if routing were even (hits = the share of experts held), at the fast end as if half of
that share's misses were caught (hits = its square root), and in between by the mean. A decoding layer's reads begin when its
router has spoken, and go as `hardware.disk_lane` has them. Those of a step that wants nearly all experts, as a prompt's does, go
on beside the dense part and beside computing, whose last few experts come after the last read; what is computed beside reads is
slower by as much as was measured.

With an accelerator the dense part and attention are its, and its experts and the CPU's are computed side by side, as the
assignment policy of a live run decides, by the timeline that live runs and replays have (`policies.once.alone`). Residents follow
what is used: as many hits are expected as the root of their share, and at the fast end as the root of that, which is what replays
of real models come to (benchmarks/policies/doctor_order.py). Where whole layers are on the accelerator, all of theirs are found.

An interval is what is predicted divided and multiplied by 1 + error: MEASURED where tables were measured here, plus their
spread; ROUGH where nobody measured, and for models that are not packed: torch computes them part by part, which was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from dali.doctor.plan import DISK, Plan, cost_model, dense_size
from dali.doctor.sizes import ITEM, ModelSizes
from dali.hardware import disk_lane, rates
from dali.hardware.cost import CostModel, DiskCosts, disk_costs
from dali.hardware.host import NORMED, ROTATED, SUMMED, HostCosts
from dali.hardware.profile import Profile
from dali.policies.decisions import Decisions
from dali.policies.once.alone import experts_seconds
from dali.policies.once.vram import residents
from dali.policies.signals import Step
from dali.policies.whole_layers import WholeLayers

PROMPT = 512  # tokens
TYPICAL = 2048  # tokens of a conversation
WIDE = 0.75  # of a layer's experts: a step that wants more reads on for those that follow, as src/native/disk/expert_cache.h has
FEW = 2  # experts, at least, that such a step computes at a time
MEASURED, ROUGH = 0.25, 1.0  # errors of predictions, as shares
EVEN, EXPECTED, LUCKY = 0.0, 0.5, 1.0  # how far from even routing to the most hits


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
    speed = _Speed(sizes, profile, plan, hits)
    steps = [speed.step(batch, batch * tokens, luck) for luck in (EVEN, EXPECTED, LUCKY)]
    decode = Interval(*(batch / seconds for seconds in (max(steps), steps[1], min(steps))))
    prefill = prompt / speed.prompt(prompt)
    load = speed.load()
    return Prediction(
        _widened(decode, error),
        _widened(Interval(prefill, prefill, prefill), error),
        None if load is None else _widened(Interval(load, load, load), error),
    )


def _found(held: float, luck: float) -> float:
    """The share of experts that are found where such a share is held: that share itself where routing is even, and its root."""
    return held + luck * (math.sqrt(held) - held)


def _on_accelerator(there: float, wanted: float, luck: float) -> float:
    """The same of residents that follow what a layer is routed to, of whose experts a token wants such a share: the share that is
    there, its root, and that one's root. No more are found than are there."""
    return max(min(math.pow(there, 4**-luck), there / wanted), there)


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


class _Beside:
    """Seconds of routed experts with an accelerator, by the policies of a live run. Layers with as many residents are alike."""

    def __init__(self, sizes: ModelSizes, plan: Plan, costs: CostModel) -> None:
        self.sizes, self.costs = sizes, costs.costs
        layers, experts, slots = sizes.moe_layers, sizes.experts, plan.resident
        capacity = residents(slots, layers, experts)
        self.policies = plan.options.policies(layers, experts, sizes.top_k, capacity)
        self.decisions = decisions = Decisions(self.policies, layers, experts)
        there = [len(decisions.initial(layer)) if slots else 0 for layer in range(layers)]
        self.whole = isinstance(self.policies.cache, WholeLayers)
        self.scratch = 0 if self.whole else slots - sum(there)
        self.alike = {count: (there.index(count), there.count(count)) for count in set(there)}

    def seconds(self, tokens: int, luck: float, prompt: bool) -> float:
        """Of all layers' experts in a step of so many tokens."""
        if (begin := self.policies.begin) is not None:
            begin(Step(np.arange(tokens) * (not prompt), np.full(tokens, prompt)))
        experts, top_k = self.sizes.experts, self.sizes.top_k
        luck, seconds = EVEN if self.whole else luck, 0.0
        for there, (layer, layers) in sorted(self.alike.items()):
            found = round(experts * _on_accelerator(there / experts, top_k / experts, luck))
            assign = partial(self.decisions.assign, layer)
            each = experts_seconds(self.costs, experts, top_k, found, self.scratch, tokens, assign)
            seconds += layers * (each + self.costs.launch)
        return seconds


class _Speed:
    """Seconds of the parts of a step."""

    def __init__(self, sizes: ModelSizes, profile: Profile, plan: Plan, hits: float | None) -> None:
        self.sizes, self.profile, self.plan, self.hits = sizes, profile, plan, hits
        self.host = HostCosts(profile)
        self.on_device = plan.device is not None
        self.costs = cost_model(sizes, plan.layouts, profile, PROMPT * sizes.top_k, self.on_device)
        self.beside = _Beside(sizes, plan, self.costs) if self.on_device else None
        self.states = sizes.states(plan.dtype, plan.in_q8)

    def step(self, tokens: int, attended: int, luck: float) -> float:
        """Of a decoding step of so many sequences, which attend to so many tokens in all."""
        seen = [min(attended, tokens * kept.window) if kept.window else attended for kept in self.sizes.kept]
        nbytes = sum(each * count for (each, _), count in zip(self.states.layers, seen, strict=True))
        dense = self.dense(tokens, tokens)
        if self.on_device:
            dense += self.costs.dense(nbytes, 0, tokens, kernels=0)
        else:
            scores = sum(kept.queries * count for kept, count in zip(self.sizes.kept, seen, strict=True))
            dense += self.host.decoding_attention(nbytes, scores) + (tokens - 1) * self.host.sequence
        return dense + self.from_disk(tokens, luck, dense, self.experts(tokens, luck))

    def prompt(self, tokens: int) -> float:
        """Of a prompt of so many tokens, in steps of a chunk each."""
        chunk = self.plan.chunk
        return sum(self._chunk(before, min(chunk, tokens - before)) for before in range(0, tokens, chunk))

    def _chunk(self, before: int, tokens: int) -> float:
        """Of a step of so many tokens of a prompt, after those before."""
        flops = sum(
            2 * kept.queries * (kept.key + kept.value) * _pairs(before, tokens, kept.window)
            for kept in self.sizes.kept
        )
        if self.on_device:
            dense = self.dense(tokens, 1) + self.costs.dense(0, flops // 2, 1, kernels=0)
        else:
            values = tokens * sum(kept.queries * kept.key for kept in self.sizes.kept)
            dense = self.dense(tokens, 1, self.host.prompt_layer) + self.passes(tokens)
            dense += self.host.prompt_attention(flops, values)
        return dense + self.from_disk(tokens, EVEN, dense, self.experts(tokens, EVEN, prompt=True))

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
            return sizes.moe_layers * self.costs.dense_seconds(*dense_size(sizes, plan))(tokens)
        seconds = self.host.step + sizes.layers * (self.host.layer if layer is None else layer)
        for one in (*sizes.dense, *sizes.tied):
            if one.kind in ("linear", "router"):
                if one.kind == "router":
                    seconds += self.host.router(one.columns, one.rows, tokens)
                    continue
                format, nbytes = sizes.read_dense(one, plan.dtype, plan.packed)
                rows = logits if one.head else tokens
                seconds += self.host.linear(format, one.rows, one.columns, nbytes, rows)
        return seconds

    def experts(self, tokens: int, luck: float, prompt: bool = False) -> float:
        """Of all layers' routed experts."""
        if self.beside is not None:
            return self.beside.seconds(tokens, luck, prompt)
        active, each = self._active(tokens)
        return self.sizes.moe_layers * active * _between(self.costs.costs.cpu, each)

    def _active(self, tokens: int) -> tuple[float, float]:
        """Experts that some of so many tokens are routed to, evenly, and how many tokens each of them gets on average."""
        sizes = self.sizes
        active = sizes.experts * (1 - (1 - sizes.top_k / sizes.experts) ** tokens)
        return active, max(tokens * sizes.top_k / active, 1.0)

    def from_disk(self, tokens: int, luck: float, dense: float, computed: float) -> float:
        """Of all layers' routed experts, which take `computed` where none has to be read, in a step whose dense parts take so
        long."""
        missing = self._missing(luck)
        if missing <= 0:
            return computed
        layers, (active, routed) = self.sizes.moe_layers, self._active(tokens)
        return layers * self._layer_from_disk(
            active, active * missing, computed / layers / active, routed, dense / self.sizes.layers
        )

    def _layer_from_disk(
        self, active: float, absent: float, each: float, routed: float, dense: float
    ) -> float:
        """Of a layer's experts: so many have work, `routed` tokens and `each` seconds of it; so many of those are to be read."""
        disk, slot = self._disk(), self.plan.slot
        if active <= WIDE * self.sizes.experts:
            there = (active - absent) * each
            counts = range(int(absent) + 2)
            seconds = [disk_lane.layer_seconds(disk, slot, there, count, each) for count in counts]
            return _between(seconds, absent)
        reading, left = disk.each(slot), absent
        if (
            not self.on_device
        ):  # over an accelerator nothing is read on, and its experts are no slower beside reads
            each *= rates.slower(self.profile.tables, "reads", routed)
            left = max(absent - dense / reading, 0.0)
        return max(left * reading + min(left, max(disk.depth / 2, FEW)) * each, active * each)

    def _missing(self, luck: float) -> float:
        """The share of experts that are to be read; those on an accelerator need no place in RAM."""
        plan = self.plan
        if self.hits is not None:
            return 1 - self.hits
        there = plan.slots + plan.resident
        if plan.where != DISK or there >= plan.all_slots:
            return 0.0
        return 1 - _found(there / plan.all_slots, luck)

    def _disk(self) -> DiskCosts:
        """As the plan has experts read, where the profile says how fast that is; a simulated device as its own profile has it."""
        if self.plan.device is not None and self.plan.device.simulated:
            return disk_costs(self.profile)
        return disk_costs(self.profile, self.plan.plain and self.profile.plain_share is not None)

    def load(self) -> float | None:
        """Of reading what RAM holds from disk, once experts are packed; None: nobody knows."""
        if not self.profile.has_disk:
            return None
        held = self.plan.experts if self.plan.where != DISK else self.plan.slots * self.plan.slot
        files = (
            self.sizes.file_bytes if self.sizes.gguf and self.plan.where != DISK else held + self.plan.dense
        )
        return files / self._disk().bandwidth
