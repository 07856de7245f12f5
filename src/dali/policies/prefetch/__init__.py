"""Prefetch: which experts of a later MoE layer to copy while the link would idle.

The runtime computes the prediction a policy asks for (its `predictor` and `distance`, plain data) by running
the later layer's own router on a predicted gate input, counts live tokens per expert, and hands the counts to
`choose`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dali.hardware.cost import ExpertCosts
from dali.policies.plan import ResidencyView


class PrefetchPolicy:
    """The busiest experts that are not there yet: DALI, arXiv 2602.03495.

    `distance`: how many MoE layers ahead. `count`: the paper's p, its number of experts; None fetches what
    the link's idle time holds (ours). Prefetched experts go to scratch slots and evict nothing.
    """

    predictor: ClassVar[str | None] = None  # how the runtime predicts the later layer's gate input

    def __init__(self, distance: int = 1, count: int | None = None) -> None:
        self.distance = distance
        self.count = count

    def choose(
        self, predicted: Sequence[int], view: ResidencyView, costs: ExpertCosts, idle: float
    ) -> tuple[int, ...]:
        """Experts to fetch, in copy order: residents and those in flight skipped, ties to the lower id.

        `predicted[e]`: tokens the later layer is expected to route to expert e. `view`: that layer's experts.
        `idle`: seconds the link has before that layer starts, demanded copies taken off.
        """
        # The contended pace: a prefetch that is late for its layer is dropped.
        count = int(idle / costs.link_contended) if self.count is None else self.count
        count = min(count, view.slots - len(view.in_flight))
        if count <= 0:
            return ()
        wanted = [
            expert
            for expert, tokens in enumerate(predicted)
            if tokens and expert not in view.resident and expert not in view.in_flight
        ]
        wanted.sort(key=predicted.__getitem__, reverse=True)  # stable: ties stay in id order
        return tuple(wanted[:count])
