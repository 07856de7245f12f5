"""No prefetching, hence no prediction."""

from __future__ import annotations

from collections.abc import Sequence

from dali.hardware.cost import ExpertCosts
from dali.policies.plan import ResidencyView
from dali.policies.prefetch import PrefetchPolicy


class Policy(PrefetchPolicy):
    """`none`."""

    def choose(
        self, predicted: Sequence[float], view: ResidencyView, costs: ExpertCosts, idle: float
    ) -> tuple[int, ...]:
        return ()
