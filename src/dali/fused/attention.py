"""Attention modules that decode in one native call.

A module is told by its parts (packed q, k, v and o projections, perhaps norms of q and k) and by a probe: both ways must give
the same bits. Whatever does not, and every step that is not all decoding, runs as transformers wrote it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from dali.fused.dense import FusedRMSNorm, PackedLinear
from dali.kernels import native
from dali.step.context import AttentionArguments, Segment, StepContext, current_step, running
from dali.step.state import SequenceState

PROBED = ((3, 7), (4, 8))  # positions of two sequences in two steps
REFUSALS = (
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
)  # it wants more than a probe gives, or something else


def probed(call: Callable[[int], Any], seen: list[AttentionArguments] | None = None) -> list[Any]:
    """What `call` gives in each of PROBED's steps, whose number it is given; `seen` as in StepContext."""
    caches, found = [SequenceState() for _ in PROBED[0]], []
    for at in range(len(PROBED)):
        segments = [Segment(cache, row, 1, at, False) for row, cache in enumerate(caches)]
        with running(StepContext(segments, len(PROBED), native=True, seen=seen)):
            found.append(call(at))
    return found


class Parts:
    """Modules that native code stands in for, with all inside them. The memory of their parameters, which it reads, stays while
    this does."""

    def __init__(self, *roots: nn.Module) -> None:
        modules = [module for root in roots for module in root.modules()]
        self._hooks: list[Any] = [every_module._global_forward_hooks, every_module._global_forward_pre_hooks]
        self._hooks += [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._made = [
            (m.__dict__, m.__dict__.get("forward"), m._modules, list(m._modules.values())) for m in modules
        ]
        held = [
            (m._parameters, name, p) for m in modules for name, p in m._parameters.items() if p is not None
        ]
        self._parameters = [(*place, place[2].data_ptr()) for place in held]
        self._memory = [parameter.detach() for _, _, parameter in held]

    @property
    def stayed(self) -> bool:
        """Whether nobody watches them, and they, what they run and their parameters' memory still are what they were:
        `model.to(...)` and `parameter.data = ...` put that elsewhere."""
        if any(self._hooks):
            return False
        for attributes, forward, modules, children in self._made:
            if attributes.get("forward") is not forward or list(modules.values()) != children:
                return False
        for parameters, name, parameter, address in self._parameters:
            if parameters.get(name) is not parameter or parameter.data_ptr() != address:
                return False
        return True


class DecodingAttention:
    """Takes the place of an attention module's forward."""

    def __init__(self, module: Any, fused: native.Attention, window: int | None) -> None:
        self.plain: Any = module.forward
        self._layer: int = module.layer_idx
        self.native, self._window = fused, window
        self.parts = Parts(module)
        self._sample = torch.empty(0, dtype=torch.uint8)  # what a token's keys look like

    def __call__(self, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Any:
        step, rotation = current_step(), keywords.get("position_embeddings")
        if step is None or not step.decoding or rotation is None or not self.parts.stayed:
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
            module.forward, fused.parts = fused, Parts(module)


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
    for positions in PROBED:
        x = torch.randn(1, len(positions), hidden, generator=generator).to(dtype)
        rotation = rotary(x, torch.tensor([positions]))
        if not isinstance(rotation, tuple) or rotation[0].shape[-1] != width:
            return None
        steps.append((x, rotation))

    def run(attend: Any, seen: list[AttentionArguments] | None) -> list[Tensor]:
        def call(at: int) -> Tensor:
            x, rotation = steps[at]
            return attend(hidden_states=x, position_embeddings=rotation, attention_mask=None)[0]  # type: ignore[no-any-return]

        return probed(call, seen)

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
