"""An executor's decoding steps, as a `Doubt` is told of them, and what that decides."""

from __future__ import annotations

from collections.abc import Callable

from dali.policies.correction import CorrectedCosts
from dali.policies.doubt import Doubt
from dali.telemetry import Telemetry

MOST_TOKENS = 32  # of a step: more are a prompt's, for which an accelerator pays otherwise


class DecodingSteps:
    """Adds layers up to steps. `on_cpu` says whether all experts of the step under way are the CPU's: nothing is copied,
    prefetched or swapped then, and guards learn nothing."""

    on_cpu = False

    def __init__(
        self,
        doubt: Doubt,
        layers: int,
        costs: CorrectedCosts,
        dense_seconds: Callable[[int], float],
        telemetry: Telemetry,
        device: str,
        tell: Callable[[str], None],
    ) -> None:
        """`dense_seconds(tokens)`: modelled, between two layers' experts. `device`: its name; `tell` is told of what changes."""
        self._doubt, self._last = doubt, layers - 1
        self._costs, self._dense_seconds = costs, dense_seconds
        self._telemetry, self._device, self._tell = telemetry, device, tell
        self._tokens = self._next = 0
        self._seconds = self._experts = 0.0

    def begin(self, tokens: int) -> None:
        """A step of so many tokens begins; one before may have failed."""
        self._tokens, self._next = tokens, 0
        self._seconds = self._experts = 0.0
        self.on_cpu = tokens <= MOST_TOKENS and self._doubt.on_cpu

    def add(self, layer: int, seconds: float, experts: float) -> None:
        """A layer has taken `seconds`, all between the one before and it included; `experts`: of all its experts on the CPU, as
        given."""
        if self._tokens > MOST_TOKENS or layer != self._next:
            return
        self._next += 1
        self._seconds += seconds
        self._experts += experts
        if layer == self._last:
            self._end()

    def _end(self) -> None:
        costs = self._costs
        self._telemetry.steps_on_cpu += self.on_cpu
        beside = self._dense_seconds(self._tokens) + costs.given.launch + costs.given.handover
        modelled = costs.cpu.applied * self._experts + (self._last + 1) * beside
        if self._doubt.step(self._seconds, modelled):
            self._telemetry.reverted = self._doubt.reverted
            self._telemetry.reverts += self._doubt.reverted
            self._tell(self._said(modelled))

    def _said(self, modelled: float) -> str:
        plan, cpu = (1000 * modelled * ratio for ratio in self._doubt.ratios)
        clock = "modelled" if self._telemetry.modelled else "measured"
        found = (
            f"Decoding steps take {plan:.3g} ms by the plan for {self._device} and {cpu:.3g} ms with all experts on the CPU "
            f"({clock}, taking turns)"
        )
        return f"{found}: from here on they are {'all there' if self._doubt.reverted else 'planned again'}."
