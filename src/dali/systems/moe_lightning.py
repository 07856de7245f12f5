"""MoE-Lightning: experts on the accelerator, the weights that do not fit paged in layer by layer, a batch chosen by a roofline.

A layer takes the longer of the copies of all its absent experts, routed to or not, and of computing, its tokens spread evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dali.hardware.cost import ExpertCosts
from dali.policies import Policies, create
from dali.policies.prefetch import PrefetchPolicy
from dali.policies.signals import Signals
from dali.systems import System

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Plan(NamedTuple):
    """The planner's choice. `batch`: tokens a step; `resident`: experts a layer; `seconds`: modelled, of one layer's experts."""

    batch: int
    resident: int
    seconds: float


def plan(
    costs: ExpertCosts,
    experts: int,
    top_k: int,
    slots: int,
    slots_a_token: float,
    batches: Sequence[int] = BATCHES,
) -> Plan:
    """The batch of most tokens a second, with as many residents as fit beside it, which is where its linear program ends: more
    residents never cost time. `slots`: experts a layer that the accelerator's memory holds; `slots_a_token`: how many of them
    the keys and values of one more sequence take. Ties go to the smaller batch. ValueError: no batch fits."""
    found = []
    for batch in batches:
        resident = min(int(slots - batch * slots_a_token), experts)
        if resident >= 0:
            found.append(Plan(batch, resident, roofline(costs, experts, top_k, batch, resident)))
    if not found:
        raise ValueError(f"{slots} slots hold the keys and values of none of the batches {tuple(batches)}")
    return max(found, key=lambda plan: (plan.batch / plan.seconds, -plan.batch))


def roofline(costs: ExpertCosts, experts: int, top_k: int, tokens: int, resident: int) -> float:
    """Modelled seconds of one layer's experts."""
    active, load = min(experts, tokens * top_k), -(-tokens * top_k // experts)
    return max((experts - resident) * costs.link, active * costs.gpu[load])


class Prefetch(PrefetchPolicy):
    """Pages of the next layer: its absent experts by id, while the link is idle."""

    def __init__(self, layers: int, experts: int) -> None:
        super().__init__()
        self._layers = layers
        self._every = [1] * experts

    def foresee(
        self, layer: int, workload: Sequence[int], signals: Signals | None = None
    ) -> Sequence[tuple[int, Sequence[float]]]:
        return [(layer + 1, self._every)] if layer + 1 < self._layers else []


def policies(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
    return Policies(
        create("assign", "gpu"),
        Prefetch(layers, experts),
        create("cache", "static", layers=layers, experts=experts, capacity=capacity, seed=seed),
    )


SYSTEM = System(
    name="moe-lightning",
    title="MoE-Lightning",
    create=policies,
    source="MoE-Lightning, ASPLOS 2025, arXiv 2411.11217; github.com/caoshiyi/artifacts",
    differs=(
        "This follows the code's linear program, which has the experts on the accelerator, without its terms for attention, "
        "micro-batches and prompts. The batch is the user's here, and `plan` says which one the planner would take. Experts not "
        "paged in when they are demanded are copied alone."
    ),
)
