"""One MoE layer on the CPU alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dali.kernels import dispatch, reference
from dali.kernels.pairs import pairs_by_expert
from dali.kernels.reference import reduce_choices
from dali.store.expert_pool import ExpertPool
from dali.telemetry import Telemetry

FLOATS = (torch.float32, torch.bfloat16, torch.float16)  # which the compiled kernels take


def _taken(hidden: Tensor, ids: Tensor, weights: Tensor) -> bool:
    """Whether the compiled kernels take these as they are. A model that dali was attached to may be elsewhere than on the CPU, be
    in float64, or have a router that answers in other integers."""
    return hidden.is_cpu and hidden.dtype in FLOATS and weights.dtype in FLOATS and ids.dtype is torch.int64


class MoELayer:
    """The routed experts of MoE layer `index` of `pool`. Called as transformers calls an experts module.

    The result does not depend on which tokens share the step: every expert output lands in its (token, choice) row, and rows are
    summed in the order of choices.
    """

    def __init__(
        self, index: int, pool: ExpertPool, telemetry: Telemetry, arithmetic: str | None = None
    ) -> None:
        """`arithmetic`: of the reference kernels, to compute by them; None: the compiled ones, or exact where there are none."""
        self.index = index
        self.pool = pool
        self.telemetry = telemetry
        self.arithmetic = arithmetic
        self.workload = telemetry.count_experts(pool.layers, pool.experts)[index]
        self._workload_at = self.workload.ctypes.data
        self._whole = arithmetic is None and pool.whole_layers
        self._weight_bytes = pool.layouts[index].weight_bytes
        self._kernel: Callable[..., None] = (
            dispatch.compute_experts
            if arithmetic is None
            else partial(reference.compute_experts, arithmetic=arithmetic)
        )

    @property
    def compiled(self) -> bool:
        """Whether compiled kernels compute the layer, from a lease of all its experts."""
        return self._whole and self.pool.lease(self.index).native is not None

    def __call__(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """hidden [tokens, hidden], ids and weights [tokens, top_k] -> [tokens, hidden] in hidden's dtype."""
        started = time.perf_counter()
        lease = self.pool.lease(self.index) if self._whole and _taken(hidden, ids, weights) else None
        if lease is not None and lease.native is not None:
            out, active = lease.native.compute(hidden, ids, weights, self._workload_at)
        else:
            out, active = self._compute(hidden, ids, weights)
        self.count(ids.numel(), active, time.perf_counter() - started)
        return out

    def count(self, pairs: int, active: int, seconds: float) -> None:
        """Note a step in the telemetry: its (token, choice) pairs, the experts that took part, the time they took."""
        counters = self.telemetry.layer(self.index)
        counters.steps += 1
        counters.routed_tokens += pairs
        counters.cpu += active
        counters.expert_bytes += active * self._weight_bytes
        counters.seconds += seconds
        counters.cpu_seconds += seconds

    def _compute(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, int]:
        """From a lease of the experts that take part alone: the output, and how many they are."""
        ids = ids.cpu().long().contiguous()
        active, pairs, offsets = pairs_by_expert(ids, self.pool.experts)
        self.workload[active] += np.diff(offsets)
        x = hidden.cpu()
        x = x if x.dtype in FLOATS else x.float()
        rows = torch.empty(ids.numel(), hidden.shape[1])  # [tokens * top_k, hidden]
        for begin in range(0, len(active), self.pool.at_once):
            end = min(begin + self.pool.at_once, len(active))
            lease = self.pool.lease(self.index, active[begin:end])
            self._kernel(lease.layout, lease.records, offsets[begin : end + 1], pairs, x, rows)
            del lease  # before the next one, which may need its place
        return reduce_choices(rows, weights.cpu()).to(hidden), len(active)
