"""Seconds of what the CPU computes of a step beside routed experts: from a profile's measured tables, or by its bandwidth and
rate where it has none.

    a step = step + for each layer (layer + its linears + its router + attention + its experts, CostModel's) + the head's linear

`layer` and `step`, and `sequence` for each sequence beyond the first, are what a decoding step takes whatever the weights: calls,
norms, waits of threads for each other, Python. A linear's own call is in them, and so not in its time. Published profiles do not
say them: there they are 0.

A step of a prompt has activations that do not stay in caches. A layer of it takes

    prompt_layer + passes (norms, rotations, residual sums) + rows of experts, written and summed

A pass is a read or a write of every value of a tensor; its bandwidth is the profile's curve of the tensor's dtype, which goes
with the tensor's bytes: values that are not float32 are made so and rounded again, which takes longer than reading them. Without
a curve of theirs they go by float32's, without any by memory. A prompt's attention takes time by its operations, and by the
values of its queries, which are brought into place and merged, and whose blocks see a few keys in vain.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

from dali.hardware import rates
from dali.hardware.cost import interpolate
from dali.hardware.profile import Profile

PASSES = "passes over activations"  # float32's curve; others' names end in their dtype
ROTATED, NORMED, SUMMED = 2, 2, 3  # passes over a tensor that turns, is normed, is added to another
FIRST_WRITE = 2  # passes of writing what no cache holds: it is read before


def curve_of(dtype: str) -> str:
    """The name of a curve of passes over tensors of so named values."""
    return PASSES if dtype == "float32" else f"{PASSES}, {dtype}"


class HostCosts:
    """Of one profile. Every time from here is modelled."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self.layer = self._said("layer_overhead")
        self.step = self._said("step_overhead")
        self.sequence = self._said("sequence_overhead")
        self.prompt_layer = self._said("prompt_layer") or self.layer
        self._curves = {curve.name: curve.points for curve in profile.curves}
        self._call = self._said("cpu_call")
        self._seconds = cache(self._at)

    def linear(self, format: str, rows: int, columns: int, nbytes: int, tokens: int) -> float:
        """Of one linear [rows, columns], packed in so many bytes, or as torch has it in a float format; experts that are shared
        are three of them."""
        return self._seconds("linear", format, rows * columns, nbytes, tokens)

    def router(self, hidden: int, experts: int, tokens: int) -> float:
        """Of a router's logits and its choice; its weights in bfloat16."""
        return self._seconds("router", "bf16", hidden * experts, 2 * hidden * experts, tokens)

    def decoding_attention(self, nbytes: int, scores: int) -> float:
        """Of tokens that attend, each to its own sequence, to so many bytes of keys and values in all; scores: one for each head
        of a query and token that it attends to."""
        bandwidth = self._said("attention_bandwidth") or self._profile["memory_bandwidth"]
        return nbytes / bandwidth + scores * self._said("attention_score")

    def prompt_attention(self, flops: int, values: int) -> float:
        """Of a prompt's tokens: 4 x heads x width operations for each pair of a token and one that it attends to, heads x width
        values of each one's query."""
        rate = self._said("attention_rate") or self._profile["cpu_rate"]
        return flops / rate + values * self._said("attention_query")

    def passes(self, nbytes: int, count: int, dtype: str = "float32") -> float:
        """Of so many passes over a tensor of so many bytes."""
        curve = self._curves.get(curve_of(dtype)) or self._curves.get(PASSES, ())
        return count * nbytes / self._pass_bandwidth(nbytes, curve)

    def summed_rows(self, hidden: int, top_k: int, tokens: int) -> float:
        """Of what a prompt's tokens have of their experts, in float32: written and read once, and the sums written."""
        passes = (FIRST_WRITE + 1) * top_k + FIRST_WRITE
        return 4 * hidden * tokens * passes / self._profile["memory_bandwidth"]

    def _pass_bandwidth(self, nbytes: int, curve: Sequence[tuple[float, float]]) -> float:
        """Between two sizes that were measured, by the share of the way from one to the other; beyond them as at the last one."""
        if not curve:
            return self._profile["memory_bandwidth"]
        for (small, before), (large, after) in pairwise(curve):
            if small <= nbytes < large:
                return before + (after - before) * (nbytes - small) / (large - small)
        return curve[0 if nbytes < curve[0][0] else -1][1]

    def _said(self, figure: str) -> float:
        return self._profile[figure] if figure in self._profile.figures else 0.0

    def _at(self, kind: str, format: str, parameters: int, nbytes: int, tokens: int) -> float:
        profile = self._profile
        points = rates.points(rates.alone(profile.tables, "cpu", kind), format, parameters, nbytes)
        if points is None:
            flops = 2 * parameters * tokens
            return max(nbytes / profile["cpu_bandwidth"], flops / profile["cpu_rate"])
        seconds = interpolate(points, tokens)[tokens]
        return max(seconds - self._call, seconds / 2)
