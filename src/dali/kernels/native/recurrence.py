"""What recurrent layers do with a step's tokens, as kernels/recurrence.py has it, in native calls; and whole modules of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dali.compiled import library
from dali.kernels.native.library import DTYPES
from dali.kernels.native.linear import Linear
from dali.kernels.native.route import address_of
from dali.kernels.recurrence import Stretch, scan_state

CONVOLVED_DTYPES = (torch.float32, torch.bfloat16)
SILU = {None: False, "silu": True, "swish": True}

NativeStretch = tuple[int, int, int, int, list[tuple[int, int]]]


def addresses(stretches: list[Stretch]) -> list[NativeStretch]:
    """Stretches as the library takes them."""
    return [
        (
            rows.start,
            rows.stop - rows.start,
            before.data_ptr(),
            after.data_ptr(),
            [(tokens, to.data_ptr()) for tokens, to in copies],
        )
        for rows, before, after, copies in stretches
    ]


@dataclass(frozen=True)
class Convolution:
    """A causal convolution of each channel: weight [channels, width], bias [channels] or None, an activation of SILU."""

    weight: Tensor
    bias: Tensor | None
    activation: str | None

    @property
    def channels(self) -> int:
        return self.weight.shape[0]

    @property
    def window(self) -> tuple[int, int]:
        """The shape of its state."""
        return self.weight.shape[1] - 1, self.weight.shape[0]

    def parts(self) -> tuple[tuple[int, int, int, int, bool], list[Tensor]]:
        """As the library takes it, and the memory that is read."""
        taps = self.weight.detach().T.to(torch.float32).contiguous()
        bias = torch.empty(0) if self.bias is None else self.bias.detach().to(torch.float32).contiguous()
        address = 0 if self.bias is None else bias.data_ptr()
        width, channels = taps.shape
        return (channels, width, taps.data_ptr(), address, SILU[self.activation]), [taps, bias]


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    stretches: list[Stretch],
    out: Tensor,
) -> None:
    """As recurrence.convolve(), for x of one of CONVOLVED_DTYPES and an activation of SILU."""
    assert x.stride(1) == 1 and out.is_contiguous() and out.dtype == x.dtype
    parts, memory = Convolution(weight, bias, activation).parts()
    library.convolve(parts, x.data_ptr(), x.stride(0), DTYPES[x.dtype], addresses(stretches), out.data_ptr())
    del memory


def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    beta: Tensor,
    normalised: bool,
    stretches: list[Stretch],
    out: Tensor,
) -> None:
    """As recurrence.delta_rule()."""
    parts = [part.to(torch.float32).contiguous() for part in (query, key, value, decay, beta)]
    floats = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    assert floats.is_contiguous()
    library.delta_rule(
        (key.shape[1], value.shape[1], key.shape[2], value.shape[2], decay.dim() == 3, normalised),
        *((part.data_ptr(), part.stride(0)) for part in parts),
        addresses(stretches),
        floats.data_ptr(),
    )
    if floats is not out:
        for rows, *_ in stretches:
            out[rows] = floats[rows]


@dataclass(frozen=True)
class SelectiveScan:
    """A selective state space of rate, step_bias and skip [heads], which may be None, limits of steps, groups of heads that share
    B and C, and widths: of a head, of the state."""

    rate: Tensor
    step_bias: Tensor
    skip: Tensor | None
    limits: tuple[float, float]
    groups: int
    width: int
    state: int

    @property
    def heads(self) -> int:
        return len(self.rate)

    def parts(self) -> tuple[Any, list[Tensor | None]]:
        """As the library takes it, and the memory that is read."""
        memory = [
            None if part is None else part.detach().contiguous()
            for part in (self.rate, self.step_bias, self.skip)
        ]
        sizes = self.heads, self.width, self.groups, self.state
        return library.SelectiveScan(sizes, tuple(map(address_of, memory)), self.limits), memory


def selective_scan(
    x: Tensor,
    steps: Tensor,
    rate: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None,
    step_bias: Tensor,
    limits: tuple[float, float],
    stretches: list[Stretch],
    out: Tensor,
) -> None:
    """As recurrence.selective_scan(); each token's x, b, c and steps are contiguous."""
    assert out.is_contiguous() and out.shape == x.shape and out.dtype == torch.float32
    parts, memory = SelectiveScan(rate, step_bias, skip, limits, b.shape[1], x.shape[2], b.shape[2]).parts()
    strided = ((part.data_ptr(), DTYPES[part.dtype], part.stride(0)) for part in (x, b, c, steps))
    library.scan(parts, *strided, addresses(stretches), out.data_ptr())
    del memory


@dataclass(frozen=True)
class Field:
    """Where heads' values lie in the output of the projection of that number: in runs of `group` heads, `outer` values apart, and
    within a run `inner` apart."""

    projection: int
    begin: int
    group: int
    outer: int
    inner: int


class RecurrentModule:
    """A whole module whose tokens meet in recurrent states; `_module` is the library's. `window` and `state`: shapes of what it
    keeps of a sequence, a convolution's inputs and what its rule, if it has one, made of all tokens."""

    out: Linear
    window: tuple[int, int]
    state: tuple[int, int, int] | None = None
    _module: Any

    def mix(self, x: Tensor, states: list[list[NativeStretch]]) -> Tensor:
        """x [..., hidden], of the step's rows; states of each kind that it keeps, of each sequence -> the module's output."""
        x = x.contiguous()
        result = x.new_empty((*x.shape[:-1], self.out.rows))
        rows = x.numel() // x.shape[-1]
        library.mix(self._module, x.data_ptr(), DTYPES[x.dtype], rows, states, result.data_ptr())
        return result


class DeltaNet(RecurrentModule):
    """A gated delta net: its first projections, a convolution of all heads' queries, then keys, then values, the rule, a norm of
    each head, silu of a gate or its sigmoid, the output projection. A decay's logarithm is rate * softplus(value + offset): rate
    [heads], offset [heads], or [heads, key width] where each channel of keys has its decay."""

    def __init__(
        self,
        projections: list[Linear],
        out: Linear,
        heads: tuple[int, int, int, int],
        fields: dict[str, Field],
        convolution: Convolution,
        rate: Tensor,
        offset: Tensor,
        norm: tuple[Tensor, float],
        by_sigmoid: bool = False,
        raised: list[tuple[int, Linear]] | None = None,
    ) -> None:
        """`heads`: of keys, of values, their widths; `fields`: of query, key, value, gate, beta and decay; `raised`: further
        projections, each of the projection of that number."""
        key_heads, value_heads, key_width, value_width = heads
        assert convolution.channels == 2 * key_heads * key_width + value_heads * value_width
        assert out.columns == value_heads * value_width and value_heads % key_heads == 0
        by_channel = offset.numel() != value_heads
        assert rate.numel() == value_heads and len(norm[0]) == value_width
        assert not by_channel or offset.numel() == value_heads * key_width
        raised = raised or []
        self.out, self.window, self.state = out, convolution.window, (value_heads, key_width, value_width)
        parts, memory = convolution.parts()
        floats = [part.detach().float().flatten() for part in (rate, offset, norm[0])]
        self._memory = projections, memory, floats, raised
        order = ("query", "key", "value", "gate", "beta", "decay")
        places = [
            (field.projection, field.begin, field.group, field.outer, field.inner)
            for field in map(fields.__getitem__, order)
        ]
        self._module = library.DeltaNet(
            [linear._packed for linear in projections],
            out._packed,
            (*heads, by_channel, True),
            parts,
            places,
            *(part.data_ptr() for part in floats),
            norm[1],
            by_sigmoid,
            [(source, linear._packed) for source, linear in raised],
        )


class ShortConvolution(RecurrentModule):
    """A gated short convolution: of a projection [before, after, x], after * convolution(before * x), and the output
    projection."""

    def __init__(self, projection: Linear, out: Linear, convolution: Convolution) -> None:
        assert projection.rows == 3 * convolution.channels == 3 * out.columns
        self.out, self.window = out, convolution.window
        parts, memory = convolution.parts()
        self._memory = projection, memory
        self._module = library.ShortConvolution(projection._packed, out._packed, parts)


class Mamba2(RecurrentModule):
    """A mixer of Mamba2: a projection of [gate, the convolution's channels: x, then B, then C of all groups; steps of the heads],
    the convolution, the scan, a norm, by a weight [heads * width] and an epsilon, of each `group` values times silu(gate), the
    output projection."""

    def __init__(
        self,
        projection: Linear,
        out: Linear,
        convolution: Convolution,
        scan: SelectiveScan,
        norm: tuple[Tensor, float],
        group: int,
    ) -> None:
        inner = scan.heads * scan.width
        assert convolution.channels == inner + 2 * scan.groups * scan.state and scan.heads % scan.groups == 0
        assert projection.rows == inner + convolution.channels + scan.heads
        assert out.columns == inner == len(norm[0]) and inner % group == 0
        self.out, self.window = out, convolution.window
        self.state = scan_state(scan.heads, scan.width, scan.state)
        convolved, memory = convolution.parts()
        scanned, read = scan.parts()
        weight = norm[0].detach().contiguous()
        self._memory = projection, memory, read, weight
        self._module = library.Mamba2(
            projection._packed, out._packed, convolved, scanned, (address_of(weight), group, norm[1])
        )
