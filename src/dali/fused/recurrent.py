"""Recurrent modules in one native call: delta nets, short convolutions, Mamba2.

A module is told by its parts and by a probe. What lies between a delta net's projections is native in every step, not while
decoding alone: torch rounds its curves by where a value lies. So the probe asks for values that are close, and the layers made of
such modules for the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dali.fused.dense import PackedLinear
from dali.fused.probe import POSITIONS, REFUSALS, close, probe
from dali.fused.rotation import Turns
from dali.fused.watch import Watch
from dali.hooks.recurrent import ConvolutionWindow, LinearAttentionState, stretches
from dali.kernels import native
from dali.step.context import StepContext, current_step

CPU = torch.device("cpu")
DTYPES = native.CONVOLVED_DTYPES
OUTPUTS = ("out_proj", "o_proj")  # what modules call the output's linear


class FusedRecurrent:
    """Takes the place of a recurrent module's forward."""

    kind = None  # of the rotation it is given: none

    def __init__(self, module: Any, fused: native.RecurrentModule, dtype: torch.dtype) -> None:
        self.plain: Any = module.forward
        self._layer: int = module.layer_idx
        self.native, self.dtype = fused, dtype
        self.watch = Watch(module)

    def __call__(self, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Any:
        step = current_step()
        if step is None or not step.native or hidden_states.dtype != self.dtype or not self.watch.untouched:
            return self.plain(hidden_states, *arguments, **keywords)
        return self.native.mix(hidden_states, self._states(step))

    def takes(self, rotation: Turns, step: StepContext) -> bool:
        """Whether the module was probed with such a rotation: it sees none."""
        return True

    def kept(self, step: StepContext) -> native.Kept:
        """The states of the step's sequences."""
        return [], self._states(step)

    def _states(self, step: StepContext) -> list[list[native.NativeStretch]]:
        window = stretches(ConvolutionWindow, self._layer, step, self.native.window, self.dtype, CPU)
        if self.native.state is None:
            return [native.addresses(window)]
        states = stretches(LinearAttentionState, self._layer, step, self.native.state, torch.float32, CPU)
        return [native.addresses(window), native.addresses(states)]


def fuse_recurrent(model: nn.Module) -> None:
    """Let every delta net and short convolution that can be computed in one native call be."""
    for module in model.modules():
        if (fused := _fused(module)) is not None:
            module.forward = fused
            fused.watch = Watch(module)  # only now: what takes the forward's place is no change by anybody


def _fused(module: Any) -> FusedRecurrent | None:
    try:
        with torch.inference_mode():
            make = next((make for names, make in KINDS if names == _names(module)), None)
            return None if make is None or not _packed(module) else _probed(module, make)
    except REFUSALS:
        return None


def _names(module: nn.Module) -> set[str]:
    """What its parts and own parameters are called."""
    own = {name for name, _ in module.named_parameters(recurse=False)}
    return own | {name for name, _ in module.named_children()}


def _packed(module: nn.Module) -> bool:
    """Whether its linears are."""
    return all(isinstance(part, PackedLinear) for name, part in module.named_children() if "proj" in name)


def _probed(module: Any, make: Callable[[Any], Iterator[native.RecurrentModule]]) -> FusedRecurrent | None:
    dtype = next(
        getattr(module, name) for name in ("norm", "o_norm", "conv") if hasattr(module, name)
    ).weight.dtype
    if dtype not in DTYPES:
        return None
    hidden = next(getattr(module, name) for name in OUTPUTS if hasattr(module, name)).out_features
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(1, len(rows), hidden, generator=generator).to(dtype) for rows in POSITIONS]

    def run(forward: Any) -> list[Tensor]:
        return probe(lambda at: forward(hidden_states=steps[at]))

    expected = run(module.forward)
    for fused in make(module):
        recurrent = FusedRecurrent(module, fused, dtype)
        found = run(recurrent)
        if len(found) == len(expected) and all(
            close(ours, theirs, dtype) for ours, theirs in zip(found, expected, strict=True)
        ):
            return recurrent
    return None


def _convolution(conv: nn.Conv1d, activation: Any) -> native.Convolution:
    assert conv.groups == conv.in_channels == conv.out_channels
    return native.Convolution(conv.weight.squeeze(1), conv.bias, activation)


def _short_convolution(module: Any) -> Iterator[native.ShortConvolution]:
    yield native.ShortConvolution(
        module.in_proj.native, module.out_proj.native, _convolution(module.conv, None)
    )


def _grouped(key_width: int, value_width: int, group: int) -> dict[str, native.Field]:
    """Qwen3-Next: for each head of keys its query, key, values and gates together, rates and decays in another."""
    field = native.Field
    each = 2 * (key_width + group * value_width)
    values = 2 * key_width
    return {
        "query": field(0, 0, 1, each, 0),
        "key": field(0, key_width, 1, each, 0),
        "value": field(0, values, group, each, value_width),
        "gate": field(0, values + group * value_width, group, each, value_width),
        "beta": field(1, 0, group, 2 * group, 1),
        "decay": field(1, group, group, 2 * group, 1),
    }


def _apart(key_heads: int, key_width: int, value_width: int) -> dict[str, native.Field]:
    """Qwen3.5: all queries, then keys, then values; gates, rates and decays in projections of their own."""
    field = native.Field
    keys = key_heads * key_width
    return {
        "query": field(0, 0, 1, key_width, 0),
        "key": field(0, keys, 1, key_width, 0),
        "value": field(0, 2 * keys, 1, value_width, 0),
        "gate": field(1, 0, 1, value_width, 0),
        "beta": field(2, 0, 1, 1, 0),
        "decay": field(3, 0, 1, 1, 0),
    }


def _delta_net(module: Any) -> Iterator[native.DeltaNet]:
    heads = module.num_k_heads, module.num_v_heads, module.head_k_dim, module.head_v_dim
    if hasattr(module, "in_proj_qkvz"):
        names: tuple[str, ...] = ("in_proj_qkvz", "in_proj_ba")
        fields = _grouped(heads[2], heads[3], heads[1] // heads[0])
    else:
        names = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
        fields = _apart(heads[0], heads[2], heads[3])
    yield native.DeltaNet(
        [getattr(module, name).native for name in names],
        module.out_proj.native,
        heads,
        fields,
        _convolution(module.conv1d, module.activation),
        -module.A_log.float().exp(),
        module.dt_bias,
        (module.norm.weight, module.norm.variance_epsilon),
    )


def _mamba2(module: Any) -> Iterator[native.Mamba2]:
    scan = native.SelectiveScan(
        -module.A_log.float().exp(),
        module.dt_bias,
        module.D,
        module.time_step_limit,
        module.n_groups,
        module.head_dim,
        module.ssm_state_size,
    )
    norm = module.norm.weight, module.norm.variance_epsilon
    yield native.Mamba2(
        module.in_proj.native,
        module.out_proj.native,
        _convolution(module.conv1d, module.activation),
        scan,
        norm,
        module.norm.group_size,
    )


def _delta_attention(module: Any) -> Iterator[native.DeltaNet]:
    """Kimi's: a decay for each channel of keys, all in projections of their own; decays and gates perhaps by way of fewer
    values."""
    heads, width, forget, field = module.num_heads, module.head_dim, module.forget_gate, native.Field
    linears, raised = [module.q_proj, module.k_proj, module.v_proj, module.b_proj], []
    if hasattr(module, "g_proj"):
        linears += [forget.f_proj, module.g_proj]
    else:
        linears += [forget.f_a_proj, module.g_a_proj]
        raised = [(4, forget.f_b_proj.native), (5, module.g_b_proj.native)]
    last = 4 + len(raised)  # decays, and gates behind them
    fields = {name: field(at, 0, 1, width, 0) for at, name in enumerate(("query", "key", "value"))}
    fields |= {"beta": field(3, 0, 1, 1, 0), "decay": field(last, 0, 1, width, 0)}
    yield native.DeltaNet(
        [linear.native for linear in linears],
        module.o_proj.native,
        (heads, heads, width, width),
        fields | {"gate": field(last + 1, 0, 1, width, 0)},
        _convolution(module.conv1d, module.activation),
        -forget.A_log.float().exp(),
        forget.dt_bias,
        (module.o_norm.weight, module.o_norm.variance_epsilon),
        by_sigmoid=True,
        raised=raised,
    )


DELTA_ATTENTION = {"q_proj", "k_proj", "v_proj", "b_proj", "conv1d", "forget_gate", "o_norm", "o_proj"}
DELTA_NET = {"conv1d", "dt_bias", "A_log", "norm", "out_proj"}
KINDS: list[tuple[set[str], Callable[[Any], Iterator[native.RecurrentModule]]]] = [
    ({"conv", "in_proj", "out_proj"}, _short_convolution),
    (DELTA_NET | {"in_proj_qkvz", "in_proj_ba"}, _delta_net),
    (DELTA_NET | {"in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"}, _delta_net),
    (DELTA_NET | {"in_proj", "D", "act"}, _mamba2),
    (DELTA_ATTENTION | {"g_a_proj", "g_b_proj"}, _delta_attention),
    (DELTA_ATTENTION | {"g_proj"}, _delta_attention),
]
