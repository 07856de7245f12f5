"""Attention modules that decode in one native call.

A module is told by its parts (packed q, k, v and o projections, perhaps norms of q and k) and by a probe: both ways must give
the same bits. Whatever does not, and every step that is not all decoding, runs as transformers wrote it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dali.fused.dense import FusedRMSNorm, PackedLinear
from dali.fused.probe import POSITIONS, REFUSALS, probe
from dali.fused.watch import Watch
from dali.kernels import native
from dali.step.context import AttentionArguments, StepContext, current_step


class DecodingAttention:
    """Takes the place of an attention module's forward."""

    def __init__(self, module: Any, fused: native.Attention, window: int | None) -> None:
        self.plain: Any = module.forward
        self._layer: int = module.layer_idx
        self.native, self._window = fused, window
        self.watch = Watch(module)
        self._sample = torch.empty(0, dtype=torch.uint8)  # what a token's keys look like

    def __call__(self, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Any:
        step, rotation = current_step(), keywords.get("position_embeddings")
        if step is None or not step.decoding or rotation is None or not self.watch.untouched:
            return self.plain(hidden_states, *arguments, **keywords)
        cos, sin = rotation
        return self.native.decode(hidden_states, cos, sin, self.places(step, hidden_states.dtype)), None

    def places(self, step: StepContext, dtype: torch.dtype) -> list[native.DecodingToken]:
        """Where the step's tokens, one a sequence, keep their keys and values."""
        sample = self._sample
        if sample.dtype != dtype:
            sample = self._sample = torch.empty(self.native.kv_heads, 1, self.native.width, dtype=dtype)
        index, window = self._layer, self._window
        return [s.state.kv(index).place(s.start, sample, sample, window) for s in step.segments]


def fuse_attention(model: nn.Module) -> None:
    """Let every attention module that can decode in one native call do so."""
    rotary = [m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")]
    if len(rotary) != 1:
        return
    for module in model.modules():
        if isinstance(getattr(module, "o_proj", None), PackedLinear) and (fused := _fused(module, rotary[0])):
            module.forward = fused
            fused.watch = Watch(
                module
            )  # only now: what takes the forward's place is no change by anybody else


@torch.inference_mode()
def _fused(module: Any, rotary: Any) -> DecodingAttention | None:
    linears: list[Any] = [getattr(module, f"{name}_proj", None) for name in "qkvo"]
    norms: list[Any] = [getattr(module, f"{name}_norm", None) for name in "qk"]
    width, hidden = getattr(module, "head_dim", 0), getattr(linears[0], "in_features", 0)
    if (
        not all(isinstance(linear, PackedLinear) for linear in linears)
        or not width
        or not hasattr(module, "layer_idx")
    ):
        return None
    if not all(norm is None or isinstance(norm, FusedRMSNorm) for norm in norms):
        return None
    dtype = module.config.dtype
    if dtype not in native.ATTENTION_DTYPES:
        return None
    generator = torch.Generator().manual_seed(0)
    steps = []
    for positions in POSITIONS:
        x = torch.randn(1, len(positions), hidden, generator=generator).to(dtype)
        rotation = rotary(x, torch.tensor([positions]))
        if not isinstance(rotation, tuple) or rotation[0].shape[-1] != width:
            return None
        steps.append((x, rotation))

    def run(attend: Any, seen: list[AttentionArguments] | None) -> list[Tensor]:
        def call(at: int) -> Tensor:
            x, rotation = steps[at]
            return attend(hidden_states=x, position_embeddings=rotation, attention_mask=None)[0]  # type: ignore[no-any-return]

        return probe(call, seen)

    seen: list[AttentionArguments] = []
    try:
        expected = run(module.forward, seen)
    except REFUSALS:
        return None
    if len(seen) != len(steps) or any(arguments.window != seen[0].window for arguments in seen):
        return None
    parts = [None if norm is None else (norm.weight, norm.variance_epsilon) for norm in norms]
    fused = native.Attention(
        [linear.native for linear in linears], parts, width, seen[0].scale, seen[0].sinks
    )
    attention = DecodingAttention(module, fused, seen[0].window)
    if getattr(module.config, "clip_qkv", None) is not None:  # a probe may not reach the limit
        return None
    return attention if all(map(torch.equal, run(attention, None), expected)) else None
