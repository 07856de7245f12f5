"""Attention modules in one native call.

A module is told by its parts and by a probe: both ways must give the same bits. Its parts are packed q, k, v and o projections,
perhaps norms of q and k, before or after they are rotated; or it keeps latents (fused/latent.py), of which perhaps queries come,
too. The probe also tells in which of the known ways it rotates. Everything else runs as
transformers wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dali.fused.dense import VALUE_NORM, FusedRMSNorm, PackedLinear
from dali.fused.probe import POSITIONS, REFUSALS, close, probe, wanted
from dali.fused.rotation import Kind, Turns, is_whole, kind_of, rotary_of, rotate, turns
from dali.fused.watch import Watch
from dali.hooks.latent import LINEAR, SharedLatents, shared_latents
from dali.kernels import native
from dali.step.context import AttentionArguments, StepContext, current_step

LINEARS = {"q_proj", "k_proj", "v_proj"}
VALUES_ARE_KEYS = LINEARS - {"v_proj"}  # before their norms
LATENT = {"kv_a_proj_with_mqa", "kv_a_layernorm", LINEAR}
OUTPUTS = ("o_proj", "out_proj")  # what modules call the output's linear
QUERIES = (
    {"q_proj"},
    {"q_a_proj", "q_a_layernorm", "q_b_proj"},
)  # beside LATENT: from the input, or from a latent as well
# What modules call the norms of q and k.
NORMS = (("q_norm", "k_norm"), ("query_layernorm", "key_layernorm"), ("q_layernorm", "k_layernorm"))
CLIPS = ("clip_qkv",)  # of a configuration: a probe may not reach the limit
CLOSE = 1e-2  # difference to the largest value, where torch rounds rotations otherwise, so that quants may differ by one


class DecodingAttention:
    """Takes the place of an attention module's forward."""

    def __init__(self, module: Any, fused: native.Attention, window: int | None, kind: Kind) -> None:
        """`kind`: of the rotation it is given."""
        self.plain: Any = module.forward
        self.layer: int = module.layer_idx
        self.dtype: torch.dtype = module.config.dtype
        self.native, self.kind, self.window = fused, kind, window
        self.watch = Watch(module)
        heads, *widths = fused.kept
        keys, values = (torch.empty(heads, 1, width, dtype=self.dtype) for width in widths)
        self.samples = keys, values  # what a token's look like

    def __call__(self, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Any:
        step, rotation = current_step(), turns(keywords.get("position_embeddings"))
        if (
            step is None
            or rotation is None
            or hidden_states.dtype != self.dtype
            or not step.native
            or not self.takes(rotation, step)
            or not self.watch.untouched
        ):
            return self.plain(hidden_states, *arguments, **keywords)
        cos, sin = rotation
        return self.native.decode(hidden_states, cos, sin, self._runs(step)), None

    def takes(self, rotation: Turns, step: StepContext) -> bool:
        """Whether this is a rotation of the step's tokens as the module was probed with."""
        return self.native.rotary.takes(*rotation, step.rows)

    def kept(self, step: StepContext) -> native.Kept:
        """Where the step's tokens keep their keys and values."""
        return self._runs(step), []

    def _runs(self, step: StepContext) -> list[native.TokenRun]:
        index, window, runs = self.layer, self.window, []
        for s in step.segments:
            samples = (
                self.samples if s.tokens == 1 else [each.expand(-1, s.tokens, -1) for each in self.samples]
            )
            first = s.state.kv(index).place(s.start, samples[0], samples[1], window)
            runs.append((first, s.tokens, window or 0))
        return runs


def fuse_attention(model: nn.Module) -> None:
    """Let every attention module that can decode in one native call do so."""
    rotary = rotary_of(model)
    if rotary is None:
        return
    for module in model.modules():
        if _output(module) is not None and (fused := _fused(module, rotary)):
            module.forward = fused
            fused.watch = Watch(
                module
            )  # only now: what takes the forward's place is no change by anybody else


def _fused(module: Any, rotary: Any) -> DecodingAttention | None:
    try:
        with torch.inference_mode():
            return _probed(module, rotary) if _known(module) else None
    except REFUSALS:
        return None


def _output(module: Any) -> Any:
    """The output's packed linear, None where there is none or another."""
    found = [part for name in OUTPUTS if isinstance(part := getattr(module, name, None), PackedLinear)]
    return found[0] if len(found) == 1 else None


def _known(module: Any) -> bool:
    """Whether a module has all the parts of attention, and none that are something else."""
    parts = dict(module.named_children())
    norms = {name for names in NORMS for name in names}
    names = set(parts) - norms - {VALUE_NORM} - set(OUTPUTS)
    own = {name for name, _ in module.named_parameters(recurse=False)}
    return (
        (names in (LINEARS, VALUES_ARE_KEYS) or any(names == LATENT | queries for queries in QUERIES))
        and not getattr(module.config, "num_kv_shared_layers", 0)
        and ((LINEAR in names) == (shared_latents(module) is not None))
        and all(isinstance(part, PackedLinear | FusedRMSNorm | SharedLatents) for part in parts.values())
        and all(
            part.dtype == module.config.dtype for part in parts.values() if isinstance(part, FusedRMSNorm)
        )
        and own <= {"sinks"}
        and module.config.dtype in native.ATTENTION_DTYPES
        and all(getattr(module.config, clip, None) is None for clip in CLIPS)
    )


def _probed(module: Any, rotary: Any) -> DecodingAttention | None:
    """Takes whichever known way gives the bits of the module's own."""
    dtype, kind = module.config.dtype, kind_of(rotary, module)
    generator = torch.Generator().manual_seed(0)
    steps = []
    for positions in POSITIONS:
        x = torch.randn(1, len(positions), _hidden(module), generator=generator).to(dtype)
        steps.append((x, rotate(rotary, x, torch.tensor([positions]), kind)))

    def run(attend: Any, seen: list[AttentionArguments] | None) -> list[Tensor]:
        def call(at: int) -> Tensor:
            x, rotation = steps[at]
            return attend(hidden_states=x, position_embeddings=rotation, attention_mask=None, **others)[0]  # type: ignore[no-any-return]

        return probe(call, seen)

    seen: list[AttentionArguments] = []
    others = wanted(module.forward)
    expected = run(module.forward, seen)
    if len(seen) != len(steps) or any(arguments.window != seen[0].window for arguments in seen):
        return None
    turned = turns(steps[0][1])
    if turned is None or not (is_whole(steps[0][1]) or shared_latents(module)):
        return None
    for fused in _ways(module, turned[0], seen[0]):
        attention = DecodingAttention(module, fused, seen[0].window, kind)
        same: Any = _close if isinstance(steps[0][1], Tensor) else torch.equal  # complex numbers
        if fused.gated:
            same = partial(close, dtype=dtype)
        if all(map(same, run(attention, None), expected)):
            return attention
    return None


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether both are alike, but for the last bits of what was rotated and what follows from them."""
    return not one.numel() or float((one - other).abs().max()) <= CLOSE * float(other.abs().max())


def _hidden(module: Any) -> int:
    return int(next(part.in_features for part in module.children() if isinstance(part, PackedLinear)))


def _ways(module: Any, cos: Tensor, arguments: AttentionArguments) -> Iterator[native.Attention]:
    """The ways in which a module of these parts may compute."""
    latent = shared_latents(module) is not None
    width, given = module.qk_rope_head_dim if latent else module.head_dim, cos.shape[-1]
    rotaries = (
        []
        if not given
        else [
            native.Rotary(turning, rotated, given, cos.dtype)
            for rotated in (given, 2 * given)
            for turning in ("halves", "neighbours", "unzipped")
            if rotated == width or (rotated < width and not latent)
        ]
    )
    if not latent:
        rotaries.append(native.Rotary("none", 0, 0, cos.dtype))
    for projections in [_latent(module)] if latent else _projections(module):
        for rotary in rotaries:
            yield native.Attention(
                projections, _output(module).native, rotary, arguments.scale, arguments.sinks
            )


def _projections(module: Any) -> Iterator[native.Projections]:
    query, key = module.q_proj.native, module.k_proj.native
    value = key if getattr(module, "v_proj", None) is None else module.v_proj.native
    value_norm = _norm(getattr(module, VALUE_NORM, None))
    names = next((names for names in NORMS if any(hasattr(module, name) for name in names)), NORMS[0])
    norms = [_norm(getattr(module, name, None)) for name in names]
    for follow in (False, True) if any(norms) else (False,):
        scale = getattr(module, "v_scale", 1.0)
        gated = query.rows == 2 * _output(module).in_features
        yield native.Projections(
            query, key, value, module.head_dim, norms[0], norms[1], follow, scale, gated, value_norm
        )


def _latent(module: Any) -> native.LatentProjections:
    keys = module.kv_a_proj_with_mqa.native, _norm(module.kv_a_layernorm), getattr(module, LINEAR).heads
    if getattr(module, "q_a_proj", None) is None:
        return native.LatentProjections(module.q_proj.native, *keys)
    queries = module.q_a_proj.native, _norm(module.q_a_layernorm)
    return native.LatentProjections(module.q_b_proj.native, *keys, *queries)


def _norm(norm: Any) -> native.NormParts | None:
    return None if norm is None else (norm.weight, norm.variance_epsilon)
