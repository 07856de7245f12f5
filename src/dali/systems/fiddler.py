"""Fiddler: popular experts stay on the accelerator; a miss is computed where that is faster, on the CPU or behind a copy."""

from __future__ import annotations

from collections.abc import Sequence

from dali.hardware.cost import ExpertCosts
from dali.policies import Policies, create
from dali.policies.plan import LayerPlan, ResidencyView
from dali.systems import System
from dali.systems._popular import PopularCache


class Assign:
    """Residents run on the accelerator. A miss is copied if its tokens x (the CPU's time for one) exceed the copy's, else the CPU
    computes it. Copies go by id."""

    def assign(
        self, layer: int, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts
    ) -> LayerPlan:
        active = [expert for expert, tokens in enumerate(workload) if tokens]
        here = [expert for expert in active if expert in view.resident]
        here += [expert for expert in view.landing() if workload[expert]]
        misses = [expert for expert in active if expert not in here]
        fetch = [e for e in misses if view.slots and workload[e] * costs.cpu[1] > costs.link]
        return LayerPlan(tuple(e for e in misses if e not in fetch), (*here, *fetch), tuple(fetch))


def policies(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
    return Policies(Assign(), create("prefetch", "none"), PopularCache(layers, experts, capacity, seed))


SYSTEM = System(
    name="fiddler",
    title="Fiddler",
    create=policies,
    source="Fiddler, arXiv 2402.07033; github.com/efeslab/fiddler",
    differs=(
        "The code multiplies a typed-in time of one token; this does so with the time from this project's cost tables. Its "
        "popular set is made on a profile text over all layers at once; here of each layer's first 512 (token, expert) pairs, "
        "after which it stays."
    ),
)
