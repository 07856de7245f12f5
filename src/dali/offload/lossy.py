"""A system's lossy parts before and beside the runtime's MoE layers; they act in steps that only decode.

What is changed is a step's routing, before the runtime plans it. An expert that is not computed now, or not as it is, leaves its
(token, choice) pair to the token's weightiest expert at weight 0: that adds nothing, reads no expert more, and keeps the
routing's shape. Experts in low precision and those put off to the next layer are computed by the CPU, behind the layer's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dali.devices import COMPUTE, HOST, Buffer
from dali.errors import DaliError, parameter
from dali.hardware.cost import CostModel
from dali.kernels.dispatch import compute_experts
from dali.kernels.pairs import pairs_by_expert
from dali.kernels.reference import reduce_choices
from dali.loading.loaded import LoadedModel
from dali.offload.low_bits import low_precision
from dali.progress import Meter
from dali.runtime.executor import Executor
from dali.runtime.host import CPU, DOWN, UP
from dali.runtime.workspace import Workspace
from dali.step.context import current_step
from dali.store.expert_pool import ExpertPool
from dali.systems import DROPPED, KEPT, LATER, LOW, LossyParts, Rerouted, Routed
from dali.telemetry import Telemetry

Scores = Callable[[int, Tensor], Tensor]
"""(MoE layer, gate inputs [tokens, hidden]) -> what its router scores them, float32 [tokens, experts]."""


class CpuExperts(NamedTuple):
    """What the CPU computes with: packed experts and their modelled times."""

    pool: ExpertPool
    cost_model: CostModel


class LossyLayers:
    """The MoE layers of `executor` with `parts` on; one set of experts is computed beside it: all those that `parts` want in low
    precision, or all those they put off."""

    def __init__(
        self,
        executor: Executor,
        parts: LossyParts,
        beside: CpuExperts,
        scores: Scores | None,
        telemetry: Telemetry,
        counts: dict[str, int],
    ) -> None:
        """`scores`: for parts that predict. `counts` takes how many (token, choice) pairs there were, and what became of them."""
        assert parts.reroute is not None
        self._executor = executor
        executor.corrects = False  # what is computed here no plan knows of
        self._reroute = parts.reroute
        self._beside = beside
        self._scores = scores if parts.predicts else None
        self._telemetry = telemetry
        self._workspace = Workspace(executor.device)
        self._predicted: Tensor | None = None  # the next layer's scores
        self._late: Buffer | None = None  # what joins the next layer's output
        self._counts = counts
        counts.update(pairs=0, rerouted=0, low_precision=0, put_off=0, left_out=0)

    def layer(self, index: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """MoE layer `index` as transformers calls an experts module."""
        return partial(self.run, index)

    def run(self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """As Executor.run."""
        step = current_step()
        if step is None or any(segment.prefill for segment in step.segments):
            return self._executor.run(layer, hidden, ids, weights)
        # What an interrupted step left behind ends at the first layer.
        predicted, late = (self._predicted, self._late) if layer else (None, None)
        self._predicted = self._late = None
        if self._scores is not None and layer + 1 < self._beside.pool.layers:
            self._predicted = self._scores(layer + 1, hidden)

        view = self._executor.residency.view(layer)
        routed = Routed(
            layer,
            self._beside.pool.layers,
            ids.cpu().numpy(),
            weights.float().cpu().numpy(),
            view.resident | view.in_flight.keys(),
            None if predicted is None else predicted.cpu().numpy(),
        )
        rerouted = self._reroute(routed) or Rerouted(routed.ids, routed.weights, np.full(ids.shape, KEPT))
        self._count(routed, rerouted)
        now = rerouted.fates == KEPT
        weightiest = rerouted.weights.argmax(axis=1)[:, None]
        asked = np.where(now, rerouted.ids, np.take_along_axis(rerouted.ids, weightiest, axis=1))
        given = np.where(now, rerouted.weights, 0)
        out = self._executor.run(
            layer, hidden, torch.from_numpy(asked).to(ids), torch.from_numpy(given).to(weights)
        )
        began = self._executor.device.now()
        if late is not None:
            out = self._join(out, late)
        if (rerouted.fates == LOW).any():
            out = self._join(out, self._compute(layer, hidden, rerouted, rerouted.fates == LOW))
        elif (rerouted.fates == LATER).any():
            self._late = self._compute(layer, hidden, rerouted, rerouted.fates == LATER)
        self._executor.account(self._telemetry.layer(layer), began)
        return out

    def _count(self, routed: Routed, rerouted: Rerouted) -> None:
        counts = self._counts
        counts["pairs"] += routed.ids.size
        counts["rerouted"] += int((rerouted.ids[:, :, None] != routed.ids[:, None]).all(axis=2).sum())
        for name, fate in (("low_precision", LOW), ("put_off", LATER), ("left_out", DROPPED)):
            counts[name] += int((rerouted.fates == fate).sum())

    def _compute(self, layer: int, hidden: Tensor, rerouted: Rerouted, chosen: np.ndarray) -> Buffer:
        """Queue the chosen pairs' experts on the host stream; returns where their weighted sums [tokens, hidden] will be."""
        device, take, (pool, cost_model) = self._executor.device, self._workspace.take, self._beside
        tokens, width = hidden.shape
        asked = torch.from_numpy(rerouted.ids[chosen].astype(np.int64))
        experts, order, offsets = pairs_by_expert(asked, pool.experts)
        pairs = torch.from_numpy(np.flatnonzero(chosen))[order]
        share = torch.from_numpy(np.where(chosen, rerouted.weights, 0))
        lease = pool.lease(layer, experts)

        below = take("below", tokens, width, hidden.dtype, CPU)
        sums = take("sums", tokens, width, torch.float32, CPU)
        x = device.adopt(hidden.contiguous())
        device.copy(
            device.stream(DOWN), below, x, cost_model.activation_copy(tokens), label="activations down"
        )
        device.release(x)

        def compute() -> None:
            rows = torch.zeros(share.numel(), width)
            compute_experts(lease.layout, lease.records, offsets, pairs, below.tensor, rows)
            sums.tensor.copy_(reduce_choices(rows, share))

        costs = cost_model.costs
        seconds = costs.call + sum(costs.cpu[end - begin] for begin, end in pairwise(offsets))
        device.launch(device.stream(HOST), compute, (below,), (sums,), seconds, label=f"lossy {layer}")
        counters = self._telemetry.layer(layer)
        counters.cpu += len(experts)
        counters.expert_bytes += len(experts) * lease.layout.weight_bytes
        return sums

    def _join(self, out: Tensor, sums: Buffer) -> Tensor:
        """`out` with the host's sums added."""
        device, cost_model = self._executor.device, self._beside.cost_model
        above = self._workspace.take("above", len(out), out.shape[1], torch.float32, out.device)
        device.copy(
            device.stream(UP), above, sums, cost_model.activation_copy(len(out)), label="activations up"
        )
        total = device.adopt(out)
        device.launch(
            device.stream(COMPUTE),
            lambda: total.tensor.add_(above.tensor),
            (above, total),
            (total,),
            cost_model.costs.launch,
            label="join lossy",
        )
        return device.release(total)


def cpu_experts(
    parts: LossyParts, loaded: LoadedModel, costs: CostModel, predicting: bool, room: int | None, meter: Meter
) -> CpuExperts:
    """What the CPU computes beside the runtime with `parts` on. `predicting`: whether routers can be called on their own; `room`:
    bytes for experts in low precision, None for what is free. DaliError: what the parts need cannot be had."""
    if parts.predicts and not predicting:
        raise DaliError(
            "Predicted routing needs routers that can be called on their own, and "
            f"{type(loaded.model).__name__} has none.",
            f"Leave out {parameter('lossy')}.",
        )
    if not parts.low:
        return CpuExperts(loaded.pool, costs)
    layouts, records = low_precision(loaded.layouts, loaded.pool.records, room, meter)
    size = replace(costs.shape, bytes={"w4": layouts[0].weight_bytes})
    return CpuExperts(
        ExpertPool(layouts, records), CostModel(costs.profile, size, "w4", len(costs.costs.cpu) - 1)
    )
