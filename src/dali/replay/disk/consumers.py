"""Who waits for a layer's experts in RAM: the CPU that computes them, and the link that copies them to the accelerator."""

from __future__ import annotations

from collections.abc import Sequence

from dali.hardware.cost import ExpertCosts
from dali.policies.plan import LayerPlan, ResidencyView


class Consumers:
    """A layer's lanes beside the disk's, in seconds from its start. Each takes experts as they arrive.

    As in the lane model (policies.lanes), but that fetched experts go one by one, and a copy that begins while the CPU computes
    goes at the contended pace to its end.
    """

    def __init__(
        self,
        plan: LayerPlan,
        workload: Sequence[int],
        view: ResidencyView,
        costs: ExpertCosts,
        link_free: float,
    ) -> None:
        self._workload, self._costs, self._slots = workload, costs, view.slots
        self._on_cpu = set(plan.cpu)
        self.waited = False  # whether any expert was not there from the start
        self.cpu = costs.handover if plan.cpu else 0.0
        self.link, self.link_end = link_free, 0.0  # free for the next copy; the last copy's end
        resident = [costs.gpu[workload[expert]] for expert in plan.gpu if expert in view.resident]
        self.gpu = costs.launch + sum(resident) if resident else 0.0
        self._computed: list[float] = []  # in the order of copies: when each one's scratch slot is free again
        for expert in view.landing():
            landed = view.in_flight[expert] * costs.link_contended / costs.link
            self.link = max(self.link, landed)
            if expert in plan.gpu:
                landed = self._compute(expert, landed)
            self._computed.append(landed)

    def tail(self, expert: int) -> float:
        """What is left to do with an expert once it is in RAM."""
        tokens, costs = self._workload[expert], self._costs
        return costs.cpu[tokens] if expert in self._on_cpu else costs.link + costs.gpu[tokens] + costs.launch

    def take(self, expert: int, arrived: float) -> float:
        """An expert is in RAM. Returns when its place there is not needed any longer. Told in the order they arrive."""
        costs = self._costs
        if expert in self._on_cpu:
            self.cpu = max(self.cpu, arrived) + costs.cpu[self._workload[expert]]
            return self.cpu
        turn = len(self._computed) - self._slots
        slot = self._computed[turn] if turn >= 0 else 0.0
        start = max(self.link, arrived, slot)
        self.link = self.link_end = start + (costs.link_contended if start < self.cpu else costs.link)
        self._computed.append(self._compute(expert, self.link))
        return self.link

    @property
    def end(self) -> float:
        """When the last one is done."""
        return max(self.cpu, self.gpu)

    def _compute(self, expert: int, landed: float) -> float:
        self.gpu = max(self.gpu, landed) + self._costs.gpu[self._workload[expert]] + self._costs.launch
        return self.gpu
