"""Predictions for several layers in a row, for systems that look farther than the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dali.runtime.prefetch import Predictor


@dataclass(frozen=True)
class LookAhead:
    """What each of `predictors`, the nearest first and each a layer farther, makes of the same gate input."""

    predictors: Sequence[Predictor]

    def predict(self, layer: int, hidden: Tensor) -> tuple[int, Tensor] | None:
        """(the first later layer, the ids of it and those after it [n x tokens, top_k]); None past the last layer."""
        found = [predictor.predict(layer, hidden) for predictor in self.predictors]
        ahead = [prediction for prediction in found if prediction is not None]
        return (ahead[0][0], torch.cat([ids for _, ids in ahead])) if ahead else None

    def to(self, place: torch.device) -> LookAhead:
        return LookAhead([predictor.to(place) for predictor in self.predictors])
