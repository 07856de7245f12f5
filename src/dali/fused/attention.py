"""Attention modules that decode in one native call.

A module is told by its parts (packed q, k, v and o projections, perhaps norms of q and k, before or after they are rotated) and
by a probe: both ways must give the same bits. The probe also tells in which of the known ways it rotates. Whatever does not, and
every step that is not all decoding, runs as transformers wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dali.fused.dense import FusedRMSNorm, PackedLinear
from dali.fused.probe import POSITIONS, REFUSALS, probe
from dali.fused.rotation import Kind, kind_of, rotary_of, rotate
from dali.fused.watch import Watch
from dali.kernels import native
from dali.step.context import AttentionArguments, StepContext, current_step

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
NORMS = (("q_norm", "k_norm"), ("query_layernorm", "key_layernorm"))  # what modules call those of q and k
CLIPS = ("clip_qkv",)  # of a configuration: a probe may not reach the limit


class DecodingAttention:
    """Takes the place of an attention module's forward."""

    def __init__(self, module: Any, fused: native.Attention, window: int | None, kind: Kind) -> None:
        """`kind`: of the rotation it is given."""
        self.plain: Any = module.forward
        self._layer: int = module.layer_idx
        self.native, self.kind, self._window = fused, kind, window
        self.watch = Watch(module)
        self._samples = (torch.empty(0, dtype=torch.uint8),) * 2  # what a token's keys and values look like

    def __call__(self, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Any:
        step = current_step()
        rotation: Any = keywords.get("position_embeddings")
        if step is None or not step.decoding or not self.takes(rotation, step) or not self.watch.untouched:
            return self.plain(hidden_states, *arguments, **keywords)
        cos, sin = rotation
        return self.native.decode(hidden_states, cos, sin, self.places(step, hidden_states.dtype)), None

    def takes(self, rotation: Any, step: StepContext) -> bool:
        """Whether this is a rotation of the step's tokens, one a sequence, as the module was probed with."""
        if not isinstance(rotation, tuple) or len(rotation) != 2:
            return False
        cos, sin = rotation
        return self.native.rotary.takes(cos, sin, len(step.segments))

    def places(self, step: StepContext, dtype: torch.dtype) -> list[native.DecodingToken]:
        """Where the step's tokens, one a sequence, keep their keys and values."""
        if self._samples[0].dtype != dtype:
            widths, heads = (self.native.width, self.native.value_width), self.native.kv_heads
            keys, values = (torch.empty(heads, 1, width, dtype=dtype) for width in widths)
            self._samples = keys, values
        index, window = self._layer, self._window
        return [s.state.kv(index).place(s.start, *self._samples, window) for s in step.segments]


def fuse_attention(model: nn.Module) -> None:
    """Let every attention module that can decode in one native call do so."""
    rotary = rotary_of(model)
    if rotary is None:
        return
    for module in model.modules():
        if isinstance(getattr(module, "o_proj", None), PackedLinear) and (fused := _fused(module, rotary)):
            module.forward = fused
            fused.watch = Watch(
                module
            )  # only now: what takes the forward's place is no change by anybody else


def _fused(module: Any, rotary: Any) -> DecodingAttention | None:
    if not _known(module) or module.config.dtype not in native.ATTENTION_DTYPES:
        return None
    try:
        with torch.inference_mode():
            return _probed(module, rotary)
    except REFUSALS:
        return None


def _known(module: Any) -> bool:
    """Whether a module has all the parts of attention, and none that are something else."""
    parts = {name for name, _ in module.named_children()}
    own = {name for name, _ in module.named_parameters(recurse=False)}
    return (
        parts - {name for names in NORMS for name in names} == set(LINEARS)
        and all(isinstance(getattr(module, name), PackedLinear) for name in LINEARS)
        and own <= {"sinks"}
        and hasattr(module, "layer_idx")
        and getattr(module, "head_dim", 0) > 0
        and all(getattr(module.config, clip, None) is None for clip in CLIPS)
    )


def _probed(module: Any, rotary: Any) -> DecodingAttention | None:
    """Takes whichever known way gives the bits of the module's own."""
    dtype, kind = module.config.dtype, kind_of(rotary, module)
    generator = torch.Generator().manual_seed(0)
    steps = []
    for positions in POSITIONS:
        x = torch.randn(1, len(positions), module.q_proj.in_features, generator=generator).to(dtype)
        steps.append((x, rotate(rotary, x, torch.tensor([positions]), kind)))

    def run(attend: Any, seen: list[AttentionArguments] | None) -> list[Tensor]:
        def call(at: int) -> Tensor:
            x, rotation = steps[at]
            return attend(hidden_states=x, position_embeddings=rotation, attention_mask=None)[0]  # type: ignore[no-any-return]

        return probe(call, seen)

    seen: list[AttentionArguments] = []
    expected = run(module.forward, seen)
    if len(seen) != len(steps) or any(arguments.window != seen[0].window for arguments in seen):
        return None
    for fused in _ways(module, steps[0][1][0], seen[0]):
        attention = DecodingAttention(module, fused, seen[0].window, kind)
        if all(map(torch.equal, run(attention, None), expected)):
            return attention
    return None


def _ways(module: Any, cos: Tensor, arguments: AttentionArguments) -> Iterator[native.Attention]:
    """The ways in which a module of these parts may compute."""
    linears = [getattr(module, name).native for name in LINEARS]
    modules = next(
        (found for names in NORMS if any(found := [getattr(module, name, None) for name in names])),
        [None, None],
    )
    if not all(norm is None or isinstance(norm, FusedRMSNorm) for norm in modules):
        return
    norms = [None if norm is None else (norm.weight, norm.variance_epsilon) for norm in modules]
    width, given = module.head_dim, cos.shape[-1]
    rotaries = [
        native.Rotary(turning, rotated, given, cos.dtype)
        for rotated in (given, 2 * given)
        for turning in ("halves", "neighbours")
        if rotated <= width
    ]
    for norms_follow in (False, True) if any(norms) else (False,):
        for rotary in (*rotaries, native.Rotary("none", 0, 0, cos.dtype)):
            yield native.Attention(
                linears,
                norms,
                width,
                rotary,
                arguments.scale,
                arguments.sinks,
                norms_follow,
                getattr(module, "v_scale", 1.0),
            )
