"""Counters of what the runtime did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Telemetry:
    """Totals since the model was loaded (or `reset`)."""

    steps: int = 0  # MoE layer steps
    expert_computations: int = 0  # active experts, once a step
    routed_tokens: int = 0  # (token, slot) pairs
    expert_bytes: int = 0  # weight bytes those computations read

    def record(self, active: int, pairs: int, nbytes: int) -> None:
        self.steps += 1
        self.expert_computations += active
        self.routed_tokens += pairs
        self.expert_bytes += nbytes
