"""Models that decode in one native call: embeddings, layers, norm and head.

What Python, torch and transformers do between the calls of a step takes more time than a small layer, as each step leaves the
caches to the weights it reads. A model is told by its parts and by a probe: both ways must give the same bits. Every step that
is not a few sequences decoding runs as transformers wrote it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dali.fused.dense import ROUTED_TOKENS, FusedRMSNorm, PackedLinear
from dali.fused.layer import DecodingLayer
from dali.fused.probe import POSITIONS, REFUSALS, probe
from dali.fused.watch import Watch
from dali.kernels import native
from dali.step.context import StepContext, current_step

OUTSIDE = {"model", "lm_head"}
INSIDE = {"embed_tokens", "layers", "norm", "rotary_emb"}
FIXED = {"default", "linear", "llama3", "yarn"}  # rotations that depend on nothing but the position


class Rotations:
    """cos and sin of positions as a rotary module gives them, kept in blocks of positions."""

    BLOCK = 64
    MOST_BLOCKS = 64

    def __init__(self, rotary: Any, like: Tensor) -> None:
        """`like`: of the dtype they should have."""
        self._rotary, self._like = rotary, like
        self._blocks: dict[int, tuple[int, int, int, tuple[Tensor, Tensor]]] = {}

    def of(self, positions: list[int]) -> list[tuple[int, int]]:
        """Addresses of each position's cos and sin, [width]: good until the next call of `of` or `forget`."""
        if len(self._blocks) > self.MOST_BLOCKS:
            self.forget()
        addresses = []
        for position in positions:
            number, place = divmod(position, self.BLOCK)
            cos, sin, row_bytes, _ = self._blocks.get(number) or self._make(number)
            addresses.append((cos + place * row_bytes, sin + place * row_bytes))
        return addresses

    def forget(self) -> None:
        """Ask the rotary module anew: somebody may have changed its frequencies."""
        self._blocks.clear()

    def _make(self, number: int) -> tuple[int, int, int, tuple[Tensor, Tensor]]:
        positions = torch.arange(number * self.BLOCK, (number + 1) * self.BLOCK)
        cos, sin = (part.contiguous() for part in self._rotary(self._like, positions[None]))
        row_bytes = cos.shape[-1] * cos.element_size()
        self._blocks[number] = cos.data_ptr(), sin.data_ptr(), row_bytes, (cos, sin)
        return self._blocks[number]


class DecodingModel:
    """Decodes in the place of a causal model."""

    def __init__(self, model: Any) -> None:
        inner = model.model
        layers: list[DecodingLayer] = [layer.forward for layer in inner.layers]
        table, norm, head = inner.embed_tokens.weight, inner.norm, model.lm_head
        self._layers = layers
        self.watch = Watch(model)
        self._dtype = table.dtype
        self._rotations = Rotations(inner.rotary_emb, table.new_empty(0))
        self._native = native.DecodingModel(
            table, [layer.native for layer in layers], (norm.weight, norm.variance_epsilon), head.native
        )
        self._serves: bool | None = None  # None: to be found out

    def serves(self, step: StepContext) -> bool:
        """Whether the step is a few sequences decoding, nobody watches a part of the model, and the parts still are those it was
        made of. That is found out after a step with a prompt, and holds until the next one: it takes as long as a layer."""
        if not step.decoding or len(step.segments) > ROUTED_TOKENS:
            self._serves = None
            return False
        if self._serves is None or any(segment.prefill for segment in step.segments):
            self._rotations.forget()
            self._serves = self.watch.untouched and all(layer.keeps_experts for layer in self._layers)
        return self._serves

    def decode(self, step: StepContext, ids: list[int], positions: list[int]) -> Tensor:
        """The token of each of the step's segments -> logits [tokens, vocabulary]."""
        rotations = self._rotations.of(positions)
        places = [layer.attention.places(step, self._dtype) for layer in self._layers]
        leases = [layer.lease() for layer in self._layers]  # their bytes stay until the call has ended
        records: list[Any] = [
            lease.native for lease in leases
        ]  # whole layers have handles, as fusing has seen
        logits, outcomes = self._native.decode(records, ids, rotations, places)
        del leases
        for layer, (active, seconds) in zip(self._layers, outcomes, strict=True):
            layer.experts.count(len(ids) * layer.top_k, active, seconds)
        return logits


def fuse_model(model: Any) -> DecodingModel | None:
    """The model's way to decode in one call, if it has one."""
    if {name for name, _ in model.named_children()} != OUTSIDE:
        return None
    inner = model.model
    if {name for name, _ in inner.named_children()} != INSIDE or not isinstance(inner.layers, nn.ModuleList):
        return None
    forwards: list[Any] = [layer.forward for layer in inner.layers]
    if (
        not all(isinstance(forward, DecodingLayer) and forward.run is forwards[0].run for forward in forwards)
        or type(inner.embed_tokens) is not nn.Embedding
        or not isinstance(inner.norm, FusedRMSNorm)
        or not isinstance(model.lm_head, PackedLinear)
        or getattr(inner.rotary_emb, "rope_type", None) not in FIXED
        or inner.embed_tokens.weight.dtype != inner.norm.weight.dtype
        or any(forward.native.dtype != inner.norm.weight.dtype for forward in forwards)
    ):
        return None
    fused = DecodingModel(model)
    return fused if fused.watch.untouched and _agree(model, fused, forwards[0]) else None


@torch.inference_mode()
def _agree(model: Any, fused: DecodingModel, layer: DecodingLayer) -> bool:
    """Whether both ways give the same bits on a probe."""
    rows = len(POSITIONS[0])

    def plainly(at: int) -> Any:
        ids, positions = torch.arange(at, at + rows)[None], torch.tensor([POSITIONS[at]])
        return model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=0).logits[0]

    def natively(at: int) -> Tensor:
        step = current_step()
        assert step is not None  # the probe has just begun one
        return fused.decode(step, list(range(at, at + rows)), list(POSITIONS[at]))

    try:
        return all(map(torch.equal, probe(plainly), probe(natively)))
    except REFUSALS:
        return False
    finally:
        layer.experts.telemetry.layers.clear()  # a probe is no step
