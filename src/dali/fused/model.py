"""Models that decode in one native call: embeddings, layers, norm and head.

What Python, torch and transformers do between the calls of a step takes more time than a small layer, as each step leaves the
caches to the weights it reads. A model is told by its parts and by a probe: both ways must give the same bits. Every step that
is not a few sequences decoding runs as transformers wrote it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from dali.fused.dense import FusedRMSNorm, PackedLinear
from dali.fused.layer import MOST_SEQUENCES, DecodingLayer, records
from dali.fused.probe import POSITIONS, REFUSALS, probe
from dali.fused.rotation import Kind, is_fixed, rotate, turns
from dali.fused.watch import Watch
from dali.kernels import native
from dali.step.context import StepContext, current_step

OUTSIDE = {"model", "lm_head"}
INSIDE = {"embed_tokens", "layers"}  # and one of each of these
NORMS, ROTARIES = ("norm", "embedding_norm"), ("rotary_emb", "pos_emb")


class Rotations:
    """cos and sin of positions as a rotary module gives them for one kind of layer, kept in blocks of positions."""

    BLOCK = 64
    MOST_BLOCKS = 64

    def __init__(self, rotary: Any, kind: Kind, like: Tensor) -> None:
        """`like`: of the dtype of the model's activations."""
        self._rotary, self._kind, self._like = rotary, kind, like
        self._blocks: dict[int, tuple[int, int, int, tuple[Tensor, Tensor]]] = {}

    def of(self, positions: list[int]) -> list[tuple[int, int]]:
        """Addresses of each position's cos and sin, [given]: good until the next call of `of` or `forget`."""
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
        rotation = turns(rotate(self._rotary, self._like, positions[None], self._kind))
        assert rotation is not None  # as fusing has seen
        cos, sin = (part.contiguous() for part in rotation)
        row_bytes = cos.shape[-1] * cos.element_size()
        self._blocks[number] = cos.data_ptr(), sin.data_ptr(), row_bytes, (cos, sin)
        return self._blocks[number]


class DecodingModel:
    """Decodes in the place of a causal model."""

    def __init__(self, model: Any) -> None:
        inner = model.model
        layers: list[DecodingLayer] = [layer.forward for layer in inner.layers]
        table, head = inner.embed_tokens.weight, model.lm_head
        norm, rotary = _one(inner, NORMS), _one(inner, ROTARIES)
        self._layers = layers
        self.watch = Watch(model)
        kinds = list(dict.fromkeys(layer.mixer.kind for layer in layers))
        self._rotations = [Rotations(rotary, kind, table.new_empty(0)) for kind in kinds]
        self._native = native.DecodingModel(
            table,
            [layer.native for layer in layers],
            [kinds.index(layer.mixer.kind) for layer in layers],
            (norm.weight, norm.variance_epsilon),
            head.native,
            float(getattr(inner, "embedding_multiplier", 1.0)),
            float(getattr(model, "logits_scaling", 1.0)),
        )
        self._serves: bool | None = None  # None: to be found out

    def serves(self, step: StepContext) -> bool:
        """Whether the step is a few sequences decoding, nobody watches a part of the model, and the parts still are those it was
        made of. That is found out after a step with a prompt, and holds until the next one: it takes as long as a layer."""
        if not step.decoding or len(step.segments) > MOST_SEQUENCES:
            self._serves = None
            return False
        if self._serves is None or any(segment.prefill for segment in step.segments):
            for rotations in self._rotations:
                rotations.forget()
            self._serves = self.watch.untouched and all(layer.keeps_experts for layer in self._layers)
        return self._serves

    def decode(self, step: StepContext, ids: list[int], positions: list[int]) -> Tensor:
        """The token of each of the step's segments -> logits [tokens, vocabulary]."""
        rotations = [kind.of(positions) for kind in self._rotations]
        places = [layer.mixer.kept(step) for layer in self._layers]
        leases = [layer.lease() for layer in self._layers]  # their bytes stay until the call has ended
        logits, outcomes = self._native.decode(records(leases), ids, rotations, places)
        del leases
        for layer, outcome in zip(self._layers, outcomes, strict=True):
            layer.count(len(ids), *outcome)
        return logits

    def forget(self) -> None:
        """Take back what a probe has counted, which is no step."""
        for layer in self._layers:
            layer.forget()


def fuse_model(model: Any) -> DecodingModel | None:
    """The model's way to decode in one call, if it has one."""
    try:
        with torch.inference_mode():
            return _probed(model) if _known(model) else None
    except REFUSALS:
        return None


def _one(inner: Any, names: tuple[str, ...]) -> Any:
    """The only child by one of these names, None where there is none or another."""
    found = [getattr(inner, name) for name in names if hasattr(inner, name)]
    return found[0] if len(found) == 1 else None


def _known(model: Any) -> bool:
    """Whether a model has all the parts of a causal one, and none that are something else."""
    if {name for name, _ in model.named_children()} != OUTSIDE:
        return False
    inner = model.model
    norm, rotary = _one(inner, NORMS), _one(inner, ROTARIES)
    names = {name for name, _ in inner.named_children()}
    if not (names >= INSIDE and len(names) == len(INSIDE) + 2 and isinstance(inner.layers, nn.ModuleList)):
        return False
    forwards: list[Any] = [layer.forward for layer in inner.layers]
    return (
        bool(forwards)
        and all(isinstance(forward, DecodingLayer) for forward in forwards)
        and type(inner.embed_tokens) is nn.Embedding
        and isinstance(norm, FusedRMSNorm)
        and isinstance(model.lm_head, PackedLinear)
        and is_fixed(rotary)
        and inner.embed_tokens.weight.dtype == norm.dtype
        and all(forward.native.dtype == norm.dtype for forward in forwards)
    )


def _probed(model: Any) -> DecodingModel | None:
    fused = DecodingModel(model)
    if not fused.watch.untouched:  # watched: a probe would run the parts
        return None
    try:
        return fused if _agree(model, fused) else None
    finally:
        fused.forget()


def _agree(model: Any, fused: DecodingModel) -> bool:
    """Whether both ways give the same bits on a probe."""
    rows = len(POSITIONS[0])

    def plainly(at: int) -> Any:
        ids, positions = torch.arange(at, at + rows)[None], torch.tensor([POSITIONS[at]])
        return model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=0).logits[0]

    def natively(at: int) -> Tensor:
        step = cast(StepContext, current_step())
        return fused.decode(step, list(range(at, at + rows)), list(POSITIONS[at]))

    return all(map(torch.equal, probe(plainly), probe(natively)))
