"""Models that decode without transformers' own forward: embeddings, one run of layers in one native call, norm and head.

What transformers does around its layers (masks, caches, hooks, output records) takes more time than a small layer. A model is
told by its parts and by a probe: both ways must give the same bits. Every step that is not a few sequences decoding, and every
call outside of one, runs as transformers wrote it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from dali.engine.decode import PROBED, REFUSALS, probed
from dali.engine.decoder_layer import DecodingLayer, Run
from dali.engine.dense import PackedLinear
from dali.engine.single_thread import single_thread
from dali.engine.step import StepContext, current_step
from dali.kernels import native

OUTSIDE = {"model", "lm_head"}
INSIDE = {"embed_tokens", "layers", "norm", "rotary_emb"}


class DecodingModel:
    """Takes the place of a causal model's forward."""

    def __init__(self, model: Any, run: Run) -> None:
        self.plain: Any = model.forward
        self.run = run
        self._model = model
        self._step_reads = run.layers[0].attention.native.linears
        self._head_reads = [model.lm_head.native] if isinstance(model.lm_head, PackedLinear) else []
        self._hooks = (model.model._forward_hooks, model.model._forward_pre_hooks)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        step = current_step()
        if step is None or arguments or any(self._hooks) or not self.run.serves(step):
            return self.plain(*arguments, **keywords)
        return CausalLMOutput(logits=self.decode(step, **keywords))

    def decode(
        self,
        step: StepContext,
        *,
        input_ids: Tensor,
        position_ids: Tensor,
        logits_to_keep: int | Tensor,
        **others: Any,
    ) -> Tensor:
        """input_ids and position_ids [1, tokens] -> logits [1, tokens kept, vocabulary]."""
        inner = self._model.model
        hidden = inner.embed_tokens(input_ids)
        with single_thread():
            rotation = inner.rotary_emb(hidden, position_ids)
        # Between the native calls only one thread has work: the others fetch what comes next.
        hidden = self.run.decode(step, hidden, *rotation)
        native.announce(*self._head_reads)
        hidden = inner.norm(hidden)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits: Tensor = self._model.lm_head(hidden[:, kept])
        native.announce(*self._step_reads)
        return logits


def fuse_model(model: Any) -> None:
    """Let the model decode so, if it can."""
    if {name for name, _ in model.named_children()} != OUTSIDE:
        return
    inner = model.model
    if {name for name, _ in inner.named_children()} != INSIDE or not isinstance(inner.layers, nn.ModuleList):
        return
    forwards: list[Any] = [layer.forward for layer in inner.layers]
    if not all(isinstance(forward, DecodingLayer) and forward.run is forwards[0].run for forward in forwards):
        return
    fused = DecodingModel(model, forwards[0].run)
    if any(fused._hooks) or not _agree(fused, forwards[0]):
        return
    model.forward = fused


@torch.inference_mode()
def _agree(fused: DecodingModel, layer: DecodingLayer) -> bool:
    """Whether both ways give the same bits on a probe."""

    def run(forward: Any) -> list[Any]:
        def call(at: int) -> Any:
            positions = torch.tensor([PROBED[at]])
            ids = torch.arange(positions.numel())[None] + at
            return forward(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=0).logits

        return probed(call)

    try:
        return all(map(torch.equal, run(fused.plain), run(fused)))
    except REFUSALS:
        return False
    finally:
        layer.experts.telemetry.layers.clear()  # a probe is no step
