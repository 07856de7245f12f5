"""Decoder layers in native calls: while decoding as many as follow one another in one, of a prompt each in one of its own.

A layer is told by its parts and by a probe: both ways must give the same bits. The parts are attention that decodes natively, or
what it has instead, norms around it and around what follows, and then a fused router with experts on the CPU, a dense network, or
both; or the one half or the other. Any other layer and watched ones run part by part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from dali.fused.attention import DecodingAttention
from dali.fused.dense import FusedRMSNorm
from dali.fused.mlp import FusedGate, mlp_of
from dali.fused.probe import POSITIONS, REFUSALS, probe, wanted
from dali.fused.recurrent import FusedRecurrent
from dali.fused.rotation import Kind, Turns, rotary_of, rotate, turns
from dali.fused.router import FusedRouter
from dali.fused.watch import Watch
from dali.hooks import seam
from dali.hooks.moe_layer import MoELayer
from dali.kernels import native
from dali.step.context import MOST_ROWS, StepContext, current_step
from dali.store.expert_pool import Lease

# What layers call their norms: before and after attention, before and after what follows it.
NORMS = (
    ("input_layernorm", None, "post_attention_layernorm", None),
    (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    ("operator_norm", None, "ffn_norm", None),
    ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
    ("norm", None, None, None),  # a mixer alone
    (None, None, "norm", None),  # no mixer
)

# The same of layers whose experts stand beside a dense network, and of these: before and after the experts, after the network.
BESIDE = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
BESIDE_INSIDE = (
    "pre_feedforward_layernorm_2",
    "post_feedforward_layernorm_2",
    "post_feedforward_layernorm_1",
)
OUTPUT_SCALE = "layer_scalar"

Mixer = DecodingAttention | FusedRecurrent  # where its tokens meet those before them


@dataclass(frozen=True)
class Routed:
    """A layer's experts and what chooses them. `module`: the experts module; `experts`: its dali layer, of a pool that leases
    whole layers to compiled kernels."""

    router: FusedRouter
    module: nn.Module
    experts: MoELayer
    shared_gate: Tensor | None


@dataclass(frozen=True)
class Parts:
    """What a decoder layer is made of."""

    norms: native.LayerNorms
    dtype: torch.dtype
    hidden: int
    mixer: Mixer | None
    routed: Routed | None
    mlp: native.Mlp | None
    beside: native.BesideNorms | None


class DecodingLayer:
    """Takes the place of a decoder layer's forward. While decoding, the first of a run computes them all, and the others hand on
    its output. Of a prompt each computes itself: its call takes so long that nothing is gained, and Ctrl-C gets a turn between
    two."""

    def __init__(self, layer: Any, parts: Parts) -> None:
        self.plain: Any = layer.forward
        self.layer, self.parts = layer, parts
        self.mixer, self.routed = parts.mixer, parts.routed
        experts, gate = None, None
        if (routed := parts.routed) is not None:
            pool = routed.experts.pool
            experts, gate = (routed.router.native, pool.layouts[routed.experts.index]), routed.shared_gate
        self.native = native.DecoderLayer(
            parts.hidden,
            parts.dtype,
            parts.norms,
            None if parts.mixer is None else parts.mixer.native,
            experts,
            parts.mlp,
            gate,
            float(getattr(layer, "residual_multiplier", 1.0)),
            parts.beside,
            getattr(layer, OUTPUT_SCALE, None),
            None if parts.routed is None else parts.routed.experts.workload,
        )
        self.run = self.prompts = Run([self])
        self.given: int | None = None  # how wide a rotation the model gives it, as a step has shown

    def __call__(self, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Any:
        step, rotation = current_step(), turns(keywords.get("position_embeddings"))
        self.given = None if rotation is None else rotation[0].shape[-1]
        if step is not None and rotation is not None and hidden_states.dtype == self.parts.dtype:
            if step.computed is self.run:
                return hidden_states
            if not step.decoding or step.rows > MOST_ROWS:
                if self.prompts.serves(step) and self.takes(rotation, step):
                    return self.prompts.compute(step, hidden_states, *rotation)
            elif self is self.run.layers[0] and self.run.serves(step) and self.run.takes(rotation, step):
                step.computed = self.run
                return self.run.compute(step, hidden_states, *rotation)
        return self.plain(hidden_states, *arguments, **keywords)

    @property
    def kind(self) -> Kind:
        """Of the rotation it is given."""
        return None if self.mixer is None else self.mixer.kind

    def takes(self, rotation: Turns, step: StepContext) -> bool:
        """Whether it was probed with such a rotation."""
        return self.mixer is None or self.mixer.takes(rotation, step)

    def kept(self, step: StepContext) -> native.Kept:
        """What its mixer keeps of the step's sequences."""
        return ([], []) if self.mixer is None else self.mixer.kept(step)

    @property
    def keeps_experts(self) -> bool:
        """Whether the experts, which an accelerator may take over, still are those it was made of."""
        return self.routed is None or seam.dali_layer(self.routed.module) is self.routed.experts

    @property
    def computes_many(self) -> bool:
        """Whether a step may have more than MOST_ROWS: of experts on disk a prompt has its own order to read them in."""
        return self.routed is None or not self.routed.experts.pool.bounded

    def lease(self) -> Lease | None:
        """All of the layer's experts, if it has any, for one call."""
        return None if self.routed is None else self.routed.experts.pool.lease(self.routed.experts.index)

    def count(self, tokens: int, active: int, seconds: float) -> None:
        """Note a step in the telemetry: the experts that took part, and the time they took."""
        if self.routed is not None:
            self.routed.experts.count(tokens * self.routed.router.routing.top_k, active, seconds)

    def forget(self) -> None:
        """Take back what a probe has told, which is no step."""
        self.given = None
        if self.routed is not None:
            self.routed.experts.telemetry.clear()


def records(leases: Sequence[Lease | None]) -> list[Any]:
    """Where each layer's experts lie: whole layers have handles, as fusing has seen."""
    return [None if lease is None else lease.native for lease in leases]


class Run:
    """Layers that follow one another."""

    def __init__(self, layers: list[DecodingLayer]) -> None:
        self.layers = layers
        self._natives = [layer.native for layer in layers]
        self.watch = Watch(*(layer.layer for layer in layers))

    def serves(self, step: StepContext) -> bool:
        """Whether nobody watches the parts, these still are those it was made of, and compute as many rows."""
        if not step.native or not self.watch.untouched:
            return False
        few = step.rows <= MOST_ROWS
        return all(layer.keeps_experts and (few or layer.computes_many) for layer in self.layers)

    def takes(self, rotation: Turns, step: StepContext) -> bool:
        """Whether all layers were probed with such rotations, and are given them: some models turn in some layers only."""
        given = rotation[0].shape[-1]
        return all(layer.given == given and layer.takes(rotation, step) for layer in self.layers)

    def compute(self, step: StepContext, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """hidden [1, tokens, hidden], cos and sin [1, tokens, width] -> the last layer's output."""
        kept = [layer.kept(step) for layer in self.layers]
        leases = [layer.lease() for layer in self.layers]  # their bytes stay until the call has ended
        out, outcomes = native.decode_layers(self._natives, records(leases), hidden, cos, sin, kept)
        del leases
        for layer, outcome in zip(self.layers, outcomes, strict=True):
            layer.count(step.rows, *outcome)
        return out


def fuse_layers(model: nn.Module) -> None:
    """Let every decoder layer that can decode natively do so."""
    rotary = rotary_of(model)
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)] if rotary is not None else []
    for stack in stacks:
        pairs = [(layer, _fused(layer, rotary)) for layer in stack]
        for _, neighbours in groupby(pairs, lambda pair: pair[1] and (pair[1].kind,)):
            fused = [(layer, decoding) for layer, decoding in neighbours if decoding is not None]
            for layer, decoding in fused:
                layer.forward = decoding
            run = Run([decoding for _, decoding in fused])
            for _, decoding in fused:
                decoding.run, decoding.prompts = run, Run([decoding])


def _parts(layer: Any) -> Parts | None:
    """A layer's parts; None where one of them is missing, or there is another."""
    children = dict(layer.named_children())
    norms: dict[str | None, Any] = {n: c for n, c in children.items() if isinstance(c, FusedRMSNorm)}
    beside = set(norms) == {*BESIDE, *BESIDE_INSIDE}
    mixers = [c.forward for c in children.values() if isinstance(c.forward, Mixer)]
    others = [c for n, c in children.items() if n not in norms and not isinstance(c.forward, Mixer)]
    fitting = (names for names in NORMS if _fits(names, set(norms), bool(mixers), bool(others)))
    places = BESIDE if beside else next(fitting, None)
    if places is None or len(mixers) > 1 or list(layer.parameters(recurse=False)):
        return None
    blocks = [child for child in others if mlp_of(child) is None]
    dense = [mlp for child in others if (mlp := mlp_of(child)) is not None]
    routed = None
    if beside:
        routed, _ = _routed(blocks)
        blocks = []
    elif len(blocks) == 1:
        routed, inside = _routed(blocks[0].children())
        dense += inside
    if len(blocks) > 1 or len(dense) > 1 or (blocks and routed is None):
        return None
    found = [norms.get(name) for name in places]
    first = next(norm for norm in found if norm is not None)
    parts = native.LayerNorms(*(norm and (norm.weight, norm.variance_epsilon) for norm in found))
    dtypes = [part.dtype for part in (*norms.values(), *mixers)]
    dtypes += [] if routed is None else [routed.router.dtype]
    if any(dtype != first.dtype for dtype in dtypes):
        return None
    mixer, mlp = mixers[0] if mixers else None, dense[0] if dense else None
    apart = None
    if beside:
        if mixer is None or routed is None or mlp is None or routed.router.before is None:
            return None
        own = [(norms[name].weight, norms[name].variance_epsilon) for name in BESIDE_INSIDE]
        apart = native.BesideNorms(routed.router.before, *own)
    elif routed is not None and routed.router.before is not None:
        return None
    return Parts(parts, first.dtype, len(first.weight), mixer, routed, mlp, apart)


def _fits(names: Sequence[str | None], norms: set[str | None], mixes: bool, computes: bool) -> bool:
    """Whether these are all of a layer's norms, and each is at a part that it has."""
    return {name for name in names if name} == norms and (any(names[:2]), any(names[2:])) == (mixes, computes)


def _routed(block: Iterable[Any]) -> tuple[Routed | None, list[native.Mlp]]:
    """The experts among a block's modules with their router, and the shared expert, if there is one."""
    router, module, gate, dense = None, None, None, []
    for child in block:
        if isinstance(child, FusedRouter):
            router = child
        elif seam.dali_layer(child) is not None:
            module = child
        elif isinstance(child, FusedGate):
            gate = child
        elif (mlp := mlp_of(child)) is not None:
            dense.append(mlp)
        elif type(child) is not nn.Identity:
            return None, []
    experts = None if module is None else seam.dali_layer(module)
    if router is None or module is None or type(experts) is not MoELayer or not experts.compiled:
        return None, []
    if gate is not None and not dense:
        return None, []
    return Routed(router, module, experts, None if gate is None else gate.weight), dense


def _fused(layer: Any, rotary: Any) -> DecodingLayer | None:
    try:
        with torch.inference_mode():
            return _probed(layer, rotary)
    except REFUSALS:
        return None


def _probed(layer: Any, rotary: Any) -> DecodingLayer | None:
    parts = _parts(layer)
    if parts is None:
        return None
    fused = DecodingLayer(layer, parts)
    if not fused.run.watch.untouched:  # watched: a probe would run the parts
        return None
    try:
        return fused if _agree(layer, fused, rotary) else None
    finally:
        fused.forget()


def _agree(layer: Any, fused: DecodingLayer, rotary: Any) -> bool:
    """Whether both ways give the same bits on a probe."""
    generator = torch.Generator().manual_seed(0)
    hidden, dtype = fused.parts.hidden, fused.parts.dtype
    steps = []
    for positions in POSITIONS:
        x = torch.randn(1, len(positions), hidden, generator=generator).to(dtype)
        steps.append((x, rotate(rotary, x, torch.tensor([positions]), fused.kind)))

    def run(forward: Any) -> list[Any]:
        def call(at: int) -> Any:
            x, rotation = steps[at]
            return forward(hidden_states=x, position_embeddings=rotation, attention_mask=None, **others)

        return probe(call)

    others = wanted(layer.forward)
    expected = run(layer.forward)
    return all(isinstance(out, Tensor) for out in expected) and all(map(torch.equal, run(fused), expected))
