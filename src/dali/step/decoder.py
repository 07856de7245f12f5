"""What may stand in for a model's own forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from dali.step.context import StepContext


class Decoder(Protocol):
    """Computes steps in the place of a causal model, with the same bits."""

    def serves(self, step: StepContext) -> bool:
        """Whether it computes this step; the model's own forward does the others."""

    def decode(self, step: StepContext, ids: list[int], positions: list[int], wanted: list[int]) -> Tensor:
        """ids and positions of the step's rows -> logits [wanted, vocabulary], of the rows in `wanted`, in order."""

    @property
    def highest(self) -> Callable[[int, int], tuple[Tensor, Tensor] | None] | None:
        """(row, most) -> of that row of the latest logits those that are among the `most` highest, ties and NaN included, as
        float32 on the host, and their ids, in order; perhaps with lower ones. None: look yourself."""
