"""Decoder layers that decode natively, as many as follow one another in one call.

A layer is told by its parts (a norm, attention that decodes natively, a norm, a fused router and experts on the CPU, nothing
else) and by a probe: both ways must give the same bits. Any other layer, watched ones, and every step that is not a few
sequences decoding run part by part.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from dali.fused.attention import DecodingAttention
from dali.fused.dense import ROUTED_TOKENS, FusedRMSNorm, FusedRouter
from dali.fused.probe import POSITIONS, REFUSALS, probe
from dali.fused.watch import Watch
from dali.hooks import seam
from dali.hooks.moe_layer import MoELayer
from dali.kernels import native
from dali.step.context import StepContext, current_step
from dali.store.expert_pool import Lease

PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")


class DecodingLayer:
    """Takes the place of a decoder layer's forward. The first of a run computes them all; the others hand on its output."""

    def __init__(
        self,
        layer: Any,
        attention: DecodingAttention,
        router: FusedRouter,
        module: nn.Module,
        experts: MoELayer,
    ) -> None:
        """`experts`: the dali layer of `module`, of a pool that leases whole layers to compiled kernels."""
        self.plain: Any = layer.forward
        self.layer, self.attention, self.experts, self.top_k = layer, attention, experts, router.how[0]
        self.module = module  # an accelerator may take over its experts
        norms: list[Any] = [layer.input_layernorm, layer.post_attention_layernorm]
        before_attention, before_experts = ((norm.weight, norm.variance_epsilon) for norm in norms)
        self.native = native.DecoderLayer(
            before_attention,
            attention.native,
            before_experts,
            (router.weight, *router.how),
            experts.pool.layouts[experts.index],
        )
        self.run = Run([self])

    def __call__(self, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Any:
        step, rotation = current_step(), keywords.get("position_embeddings")
        if step is not None and rotation is not None:
            if step.computed is self.run:
                return hidden_states
            if self is self.run.layers[0] and self.run.serves(step):
                step.computed = self.run
                return self.run.decode(step, hidden_states, *rotation)
        return self.plain(hidden_states, *arguments, **keywords)

    @property
    def keeps_experts(self) -> bool:
        """Whether the experts still are those it was made of."""
        return seam.dali_layer(self.module) is self.experts

    def lease(self) -> Lease:
        """All of the layer's experts, for one call."""
        return self.experts.pool.lease(self.experts.index)


class Run:
    """Layers that follow one another."""

    def __init__(self, layers: list[DecodingLayer]) -> None:
        self.layers = layers
        self._natives = [layer.native for layer in layers]
        self.watch = Watch(*(layer.layer for layer in layers))

    def serves(self, step: StepContext) -> bool:
        """Whether the step is a few sequences decoding, nobody watches the parts, and these still are those it was made of."""
        if not step.decoding or len(step.segments) > ROUTED_TOKENS or not self.watch.untouched:
            return False
        return all(layer.keeps_experts for layer in self.layers)

    def decode(self, step: StepContext, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """hidden [1, tokens, hidden], cos and sin [1, tokens, width] -> the last layer's output."""
        places = [layer.attention.places(step, hidden.dtype) for layer in self.layers]
        leases = [layer.lease() for layer in self.layers]  # their bytes stay until the call has ended
        records: list[Any] = [
            lease.native for lease in leases
        ]  # whole layers have handles, as fusing has seen
        out, outcomes = native.decode_layers(self._natives, records, hidden, cos, sin, places)
        del leases
        for layer, (active, seconds) in zip(self.layers, outcomes, strict=True):
            layer.experts.count(len(step.segments) * layer.top_k, active, seconds)
        return out


def fuse_layers(model: nn.Module) -> None:
    """Let every decoder layer that can decode natively do so."""
    rotary = [m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")]
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)] if len(rotary) == 1 else []
    for stack in stacks:
        pairs = [(layer, _fused(layer, rotary[0])) for layer in stack]
        for _, neighbours in groupby(pairs, lambda pair: pair[1] is not None):
            fused = [(layer, decoding) for layer, decoding in neighbours if decoding is not None]
            for layer, decoding in fused:
                layer.forward = decoding
            run = Run([decoding for _, decoding in fused])
            for _, decoding in fused:
                decoding.run = run


@torch.inference_mode()
def _fused(layer: Any, rotary: Any) -> DecodingLayer | None:
    parts = dict(layer.named_children())
    if set(parts) != set(PARTS):
        return None
    attention = parts["self_attn"].forward
    inside = list(parts["mlp"].children())
    router = next((child for child in inside if isinstance(child, FusedRouter)), None)
    module = next((child for child in inside if seam.dali_layer(child) is not None), None)
    experts = None if module is None else seam.dali_layer(module)
    if (
        len(inside) != 2
        or router is None
        or module is None
        or type(experts) is not MoELayer
        or not experts.compiled
        or not isinstance(attention, DecodingAttention)
        or not all(isinstance(parts[name], FusedRMSNorm) for name in PARTS[::2])
        or parts["input_layernorm"].weight.dtype != router.weight.dtype
    ):
        return None
    fused = DecodingLayer(layer, attention, router, module, experts)
    if not fused.run.watch.untouched:  # watched: a probe would run the parts
        return None
    weight: Tensor = layer.input_layernorm.weight
    generator = torch.Generator().manual_seed(0)
    steps = []
    for positions in POSITIONS:
        x = torch.randn(1, len(positions), len(weight), generator=generator).to(weight.dtype)
        steps.append((x, rotary(x, torch.tensor([positions]))))

    def run(forward: Any) -> list[Any]:
        def call(at: int) -> Any:
            x, rotation = steps[at]
            return forward(hidden_states=x, position_embeddings=rotation, attention_mask=None)

        return probe(call)

    try:
        expected = run(layer.forward)
        same = all(isinstance(out, Tensor) for out in expected) and all(
            map(torch.equal, run(fused), expected)
        )
    except REFUSALS:
        return None
    finally:
        experts.telemetry.layers.clear()  # a probe is no step
    return fused if same else None
