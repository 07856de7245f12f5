"""Models that decode in one native call: embeddings, layers, norm and head.

What Python, torch and transformers do between the calls of a step takes more time than a small layer, as each step leaves the
caches to the weights it reads. A model is told by its parts and by a probe: both ways must give the same bits. Every step that
is not a few sequences decoding runs as transformers wrote it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dali.fused.dense import FusedRMSNorm, PackedLinear
from dali.fused.embedding import SCALE, PackedEmbedding, StoredEmbedding
from dali.fused.layer import DecodingLayer, records
from dali.fused.probe import POSITIONS, REFUSALS, probe
from dali.fused.rotation import Kind, is_fixed, rotary_of, rotate, turns
from dali.fused.watch import Watch
from dali.kernels import native
from dali.step.context import MOST_ROWS, StepContext, current_step

OUTSIDE = {"model", "lm_head"}


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


@dataclass(frozen=True)
class Inside:
    """What lies between a causal model's tokens and its head."""

    embeddings: nn.Embedding | PackedEmbedding
    layers: list[DecodingLayer]
    norm: FusedRMSNorm
    rotary: Any


class DecodingModel:
    """Decodes in the place of a causal model."""

    highest = None

    def __init__(self, model: Any, inside: Inside) -> None:
        inner, layers, norm, head = model.model, inside.layers, inside.norm, model.lm_head
        embeddings = _native_embeddings(inner, inside.embeddings)
        self._stored = inside.embeddings if isinstance(inside.embeddings, StoredEmbedding) else None
        self.layers, self.dtype, self.vocabulary = layers, embeddings.dtype, head.out_features
        self.watch = Watch(model)
        kinds = list(dict.fromkeys(layer.kind for layer in layers))
        like = torch.empty(0, dtype=self.dtype)
        self.rotations = [Rotations(inside.rotary, kind, like) for kind in kinds]
        self.native = native.DecodingModel(
            embeddings,
            [layer.native for layer in layers],
            [kinds.index(layer.kind) for layer in layers],
            (norm.weight, norm.variance_epsilon),
            head.native,
            float(getattr(model, "logits_scaling", 1.0)),
        )
        self.softcap: float | None = getattr(model.config, "final_logit_softcapping", None)
        self._serves: bool | None = None  # None: to be found out

    def serves(self, step: StepContext) -> bool:
        """Whether the step is a few sequences decoding, nobody watches a part of the model, and the parts still are those it was
        made of. That is found out after a step with a prompt, and holds until the next one: it takes as long as a layer."""
        if not step.decoding or step.rows > MOST_ROWS:
            self._serves = None
            return False
        if self._serves is None or any(segment.prefill for segment in step.segments):
            for rotations in self.rotations:
                rotations.forget()
            self._serves = self.watch.untouched and all(layer.keeps_experts for layer in self.layers)
        return self._serves

    def decode(self, step: StepContext, ids: list[int], positions: list[int], wanted: list[int]) -> Tensor:
        """The tokens of the step's segments -> logits [wanted, vocabulary]."""
        rotations = [kind.of(positions) for kind in self.rotations]
        kept = [layer.kept(step) for layer in self.layers]
        leases = [layer.lease() for layer in self.layers]  # their bytes stay until the call has ended
        places = ids if self._stored is None else self._stored.gather(ids)
        logits, outcomes = self.native.decode(records(leases), places, rotations, kept)
        del leases
        for layer, outcome in zip(self.layers, outcomes, strict=True):
            layer.count(len(ids), *outcome)
        logits = logits if len(wanted) == len(ids) else logits[wanted]
        # torch's own, as no kernel has its curve's bits.
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def forget(self) -> None:
        """Take back what a probe has counted, which is no step."""
        for layer in self.layers:
            layer.forget()


def fuse_model(model: Any) -> DecodingModel | None:
    """The model's way to decode in one call, if it has one."""
    try:
        with torch.inference_mode():
            inside = _inside(model)
            return None if inside is None else _probed(model, inside)
    except REFUSALS:
        return None


def _inside(model: Any) -> Inside | None:
    """What is inside, where a model has all the parts of a causal one, and none that are something else."""
    if {name for name, _ in model.named_children()} != OUTSIDE or not isinstance(model.lm_head, PackedLinear):
        return None
    rotary = rotary_of(model)
    parts = [part for part in model.model.children() if part is not rotary]
    embeddings = [part for part in parts if isinstance(part, nn.Embedding | PackedEmbedding)]
    stacks = [part for part in parts if isinstance(part, nn.ModuleList)]
    norms = [part for part in parts if isinstance(part, FusedRMSNorm)]
    if not len(embeddings) == len(stacks) == len(norms) == 1 or len(parts) != 3 or not is_fixed(rotary):
        return None
    layers: list[Any] = [layer.forward for layer in stacks[0]]
    if not layers or not all(isinstance(layer, DecodingLayer) for layer in layers):
        return None
    dtypes = {embeddings[0].weight.dtype, norms[0].dtype, *(layer.native.dtype for layer in layers)}
    return Inside(embeddings[0], layers, norms[0], rotary) if len(dtypes) == 1 else None


def _native_embeddings(inner: Any, module: Any) -> native.Embeddings:
    """A model's embeddings, with what it multiplies them by, or their module does."""
    dtype: torch.dtype = module.weight.dtype
    scale = getattr(module, SCALE, None)
    own = scale.to(dtype) if isinstance(scale, Tensor) else getattr(inner, "embedding_multiplier", 1.0)
    rows, width = module.num_embeddings, module.embedding_dim
    if isinstance(module, StoredEmbedding):
        return native.Embeddings(module.gathered, MOST_ROWS, width, None, dtype, float(own))
    packed = isinstance(module, PackedEmbedding)
    table, format = (module.packed, module.format) if packed else (module.weight, None)
    return native.Embeddings(table, rows, width, format, dtype, float(own))


def _probed(model: Any, inside: Inside) -> DecodingModel | None:
    fused = DecodingModel(model, inside)
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
        return fused.decode(step, list(range(at, at + rows)), list(POSITIONS[at]), list(range(rows)))

    return all(map(torch.equal, probe(plainly), probe(natively)))
