"""One MoE layer on the CPU alone."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from dali.kernels import native
from dali.kernels.expert import ExpertLayout
from dali.kernels.pairs import pairs_by_expert
from dali.kernels.reference import compute_experts, reduce_slots
from dali.telemetry import Telemetry


class MoELayer:
    """The routed experts of one layer. Called as transformers calls an experts module.

    `records[e]` is expert e, packed in `layout`. The result does not depend on which tokens share the step: every expert
    output lands in its (token, slot) row, and rows are summed in slot order.
    """

    def __init__(
        self,
        index: int,
        layout: ExpertLayout,
        records: Sequence[Tensor],
        telemetry: Telemetry,
        arithmetic: str | None = None,
    ) -> None:
        """`arithmetic`: of the reference kernels, to compute by them; None: the compiled ones, or exact where there are none."""
        self.index = index
        self.layout = layout
        self.records = records
        self.telemetry = telemetry
        self.arithmetic = arithmetic
        self.native = native.ExpertRecords(layout, records) if native.enabled() else None

    def __call__(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """hidden [tokens, hidden], ids and weights [tokens, top_k] -> [tokens, hidden] in hidden's dtype."""
        started = time.perf_counter()
        if self.arithmetic is None and self.native is not None:
            out, active = self.native.compute(hidden, ids, weights)
        else:
            out, active = self._compute(hidden, ids, weights)
        self.count(ids.numel(), active, time.perf_counter() - started)
        return out

    def count(self, pairs: int, active: int, seconds: float) -> None:
        """Note a step in the telemetry: its (token, slot) pairs, the experts that took part, the time they took."""
        counters = self.telemetry.layer(self.index)
        counters.steps += 1
        counters.routed_tokens += pairs
        counters.cpu += active
        counters.expert_bytes += active * self.layout.weight_bytes
        counters.seconds += seconds
        counters.cpu_seconds += seconds

    def _compute(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, int]:
        """By the reference kernels: the output, and how many experts took part."""
        active, slots, offsets = pairs_by_expert(ids.cpu().contiguous(), len(self.records))
        rows = torch.empty(len(slots), hidden.shape[1])  # [tokens * top_k, hidden]
        records = [self.records[expert] for expert in active]
        compute_experts(self.layout, records, offsets, slots, hidden.cpu(), rows, self.arithmetic or "exact")
        return reduce_slots(rows, weights.cpu()).to(hidden), len(active)
