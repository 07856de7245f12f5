"""What a GPU's own kernels route, for who records it: there no router of the model runs, which could be watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dali.llm import LLM
from dali.offload.gpu_model import GpuModel
from dali.runtime.gpu import GpuExecutor
from dali.step.context import StepContext

Scores = Callable[[int, Tensor], Tensor]  # layer, gate inputs -> what its router scores them


class Routed(NamedTuple):
    """What a layer's router was given and said of a step's tokens: gate inputs [tokens, hidden]; float32 scores [tokens,
    experts]; weights and ids [tokens, top_k]."""

    inputs: Tensor
    scores: Tensor
    weights: Tensor
    ids: Tensor


class GpuRouting:
    """Stands before the decoder of `llm` until `close`, and has of its latest step what a watch of routers has. From now on
    plans are made in Python, so that the host sees each layer's step."""

    def __init__(self, llm: LLM, scores: Scores, hidden: bool) -> None:
        """`scores`: of the model's routers, on the CPU; `hidden`: the tokens' embeddings, too."""
        assert isinstance(llm.executor, GpuExecutor)
        assert isinstance(llm.engine.decoder, GpuModel)
        self.step: StepContext | None = None
        self.embeddings: Tensor | None = None
        self._llm, self._scores, self._hidden = llm, scores, hidden
        self._decoder, self._executor = llm.engine.decoder, llm.executor
        self._pieces: list[list[tuple[Tensor, Tensor, Tensor]]] = []
        llm.executor.plan_in_python()
        llm.executor.routed = self._routed
        llm.engine.decoder = self

    def close(self) -> None:
        self._executor.routed = None
        self._llm.engine.decoder = self._decoder

    @torch.inference_mode()
    def take(self) -> list[Routed]:
        """Of each MoE layer in the latest step; given once."""
        pieces, self._pieces = self._pieces, []
        whole = [[torch.cat(parts) for parts in zip(*layer, strict=True)] for layer in pieces]
        return [
            Routed(x, self._scores(layer, x), weights, ids) for layer, (x, weights, ids) in enumerate(whole)
        ]

    def _routed(self, layer: int, x: Tensor, weights: Tensor, ids: Tensor) -> None:
        while len(self._pieces) <= layer:
            self._pieces.append([])
        self._pieces[layer].append((x.clone(), weights.clone(), ids))

    # As the decoder.

    def serves(self, step: StepContext) -> bool:
        return self._decoder.serves(step)

    @torch.inference_mode()
    def decode(self, step: StepContext, ids: list[int], positions: list[int], wanted: list[int]) -> Tensor:
        self.step, self._pieces = step, []
        if self._hidden:
            self.embeddings = self._llm.model.get_input_embeddings()(torch.tensor(ids))
        return self._decoder.decode(step, ids, positions, wanted)

    @property
    def highest(self) -> Callable[[int, int], tuple[Tensor, Tensor] | None] | None:
        return self._decoder.highest
