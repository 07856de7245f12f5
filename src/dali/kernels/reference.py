"""Reference kernels in torch: the oracle every faster kernel is held to, and the fallback where none runs.

Two arithmetics:
- `exact`: float32 activations against the dequantized weights.
- `int8`: what the packed kernels compute. Activations are quantized per token to int8 in groups of 32 (scale = largest
  magnitude / 127, rounded to float16 as GGML's), groups are multiplied in integers and summed in float32 with both
  scales. Only quantized formats differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import GROUP, disassemble, pad, round_up
from dali.kernels.packing import unpack
from dali.kernels.values import integers

ARITHMETICS = ("exact", "int8")


def compute_experts(
    layout: ExpertLayout,
    records: Sequence[Tensor],
    offsets: Sequence[int],
    pairs: Tensor,
    hidden: Tensor,
    rows: Tensor,
    arithmetic: str = "exact",
) -> None:
    """Compute the experts of one layer's step into `rows`.

    records: one uint8 [record_bytes] an expert. offsets: [experts + 1]; expert i computes
    pairs[offsets[i]:offsets[i+1]]. pairs: int64 [pairs], each token * top_k + choice. hidden: [tokens, hidden],
    any float type. rows: float32 [tokens * top_k, hidden], written at each expert's pairs: the expert's
    output, not yet weighted.
    """
    top_k = rows.shape[0] // max(hidden.shape[0], 1)
    for i, record in enumerate(records):
        mine = pairs[offsets[i] : offsets[i + 1]]
        if len(mine):
            rows[mine] = expert_ffn(layout, record, hidden[mine // top_k].to(torch.float32), arithmetic)


def expert_ffn(layout: ExpertLayout, record: Tensor, x: Tensor, arithmetic: str = "exact") -> Tensor:
    """One expert on float32 x [tokens, hidden] -> float32 [tokens, hidden]."""
    shape = layout.shape

    def linear(name: str, inputs: Tensor) -> Tensor:
        rows, columns = shape.matrices[name]
        bias = layout.part(record, f"{name}_bias").view(torch.float32) if shape.biased else None
        packed, format = layout.part(record, name), layout.formats[name]
        if arithmetic == "int8" and format.quantized:
            quants, scales = disassemble(packed, rows, columns, format)
            return _int8_linear(inputs, *integers(quants, scales, format), bias)
        return F.linear(inputs, unpack(packed, rows, columns, format), bias)

    gate = linear("gate", x) if shape.gated else None
    return linear("down", shape.activation(gate, linear("up", x)))


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [tokens, columns] -> integers, as float32 [tokens, groups, 32], and scales [tokens, groups]."""
    padded = pad(x, len(x), round_up(x.shape[1], GROUP))
    groups = padded.reshape(x.shape[0], padded.shape[1] // GROUP, GROUP)
    largest = groups.abs().amax(-1)
    inverse = torch.tensor(127.0) / largest  # a plain 127 / x is torch's 127 * (1 / x), rounded twice
    inverse.masked_fill_(inverse.isinf(), 0)  # a group of zeros, or of denormals
    quants = (groups * inverse.unsqueeze(-1)).round()  # half to even, as the CPU's converts do
    return quants, to_half_precision(largest / 127)


def to_half_precision(values: Tensor) -> Tensor:
    """float32 >= 0 -> the nearest float16 could hold, were its exponent not bounded above."""
    bits = values.view(torch.int32)
    rounded = ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)
    return torch.where(values < 2.0**-14, (values + 0.5) - 0.5, rounded)  # there, multiples of 2^-24


def _int8_linear(
    x: Tensor, weights: Tensor, scales: Tensor, minima: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Products of the columns that share a scale are integers below 2^24, exact in float32; they are added in order."""
    activations, activation_scales = quantize_activations(pad(x, len(x), weights.shape[1] * GROUP))
    parts = scales.shape[2]
    weights, activations = (torch.unflatten(part, -1, (parts, -1)) for part in (weights, activations))
    out = x.new_zeros(x.shape[0], weights.shape[0])
    for group in range(weights.shape[1]):
        for part in range(parts):
            dot = activations[:, group, part] @ weights[:, group, part].T
            out += dot * (activation_scales[:, group, None] * scales[:, group, part])
            if minima is not None:
                taken = activation_scales[:, group] * activations[:, group, part].sum(-1)
                out -= taken[:, None] * minima[:, group, part]
    return out if bias is None else out + bias


def reduce_choices(rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over a token's pairs, always in the order of choices, so that no plan changes the result.

    rows: float32 [tokens * top_k, hidden]; weights: [tokens, top_k] -> float32 [tokens, hidden].
    """
    tokens, top_k = weights.shape
    by_choice = rows.view(tokens, top_k, rows.shape[1])
    weights = weights.to(torch.float32).unsqueeze(-1)
    total = by_choice[:, 0] * weights[:, 0]
    for choice in range(1, top_k):
        total += by_choice[:, choice] * weights[:, choice]
    return total
