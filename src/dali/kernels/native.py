"""The compiled kernels (src/native): `compute_experts` and `reduce_slots` as in kernels/reference.py, and packed linears.

Quantized formats are computed in the reference's `int8` arithmetic, float formats in float32. A result depends on
its weights and its token alone, bit for bit: not on threads, on the other tokens of the step, or on how experts
share out a call.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from dali.errors import UsageError
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import Format

_native: Any
try:
    _native = import_module("dali.kernels._native")
except ImportError:  # built without a compiler, or a source tree nobody built
    _native = None

AVAILABLE = _native is not None


VARIABLE = "DALI_KERNELS"


def enabled() -> bool:
    """Whether the compiled kernels serve: wherever they were built, unless DALI_KERNELS=torch asks for torch's.

    DALI_KERNELS may also name one of `variants()`. UsageError for any other value.
    """
    return _serves(os.environ.get(VARIABLE, ""))


@lru_cache(maxsize=1)
def _serves(wanted: str) -> bool:
    if wanted == "torch" or (not wanted and _native is None):
        return False
    known = [] if _native is None else variants()
    if wanted and wanted not in known:
        raise UsageError(
            f"{VARIABLE} asks for {wanted!r}.", f"Here it may be {', '.join([*known, 'torch'])}, or unset."
        )
    use(wanted or known[0])
    return True


def use(variant: str) -> None:
    """Compute with one of `variants()` from now on."""
    assert _native.choose_variant(variant), variant


_DTYPES: dict[torch.dtype, Any] = (
    {}
    if _native is None
    else {
        torch.float32: _native.Dtype.f32,
        torch.bfloat16: _native.Dtype.bf16,
        torch.float16: _native.Dtype.f16,
    }
)


def variants() -> list[str]:
    """Instruction sets that this build and this CPU have, best first."""
    return list(_native.variants())


def set_threads(threads: int, pinned: bool = False) -> None:
    """Compute with `threads` threads, the caller's among them; `pinned` binds the others to cores of their own."""
    _native.set_threads(threads, pinned)


@lru_cache(maxsize=64)
def _layout(layout: ExpertLayout) -> Any:
    shape, offsets = layout.shape, layout.offsets
    biases = [offsets[f"{name}_bias"][0] for name in shape.matrices] if shape.biased else []
    return _native.ExpertLayout(
        shape.hidden,
        shape.intermediate,
        shape.biased,
        shape.activation.kind,
        shape.activation.alpha,
        shape.activation.limit,
        [layout.formats[name].name for name in shape.matrices],
        [offsets[name][0] for name in shape.matrices],
        biases,
    )


def compute_experts(
    layout: ExpertLayout,
    records: Sequence[Tensor],
    offsets: Sequence[int],
    slots: Tensor,
    hidden: Tensor,
    rows: Tensor,
) -> None:
    """As kernels.reference.compute_experts, in one call on dali's own threads. Tensors are on the CPU, contiguous."""
    tokens = hidden.shape[0]
    if not tokens:
        return
    hidden = hidden.contiguous()
    assert (
        rows.is_contiguous()
        and rows.dtype == torch.float32
        and rows.shape[1] == layout.shape.hidden == hidden.shape[1]
    )
    assert (
        slots.is_contiguous()
        and slots.dtype == torch.int64
        and offsets[-1] <= len(slots)
        and len(offsets) == len(records) + 1
    )
    addresses = [record.data_ptr() for record in records]
    _native.compute_experts(
        _layout(layout),
        addresses,
        offsets,
        slots.data_ptr(),
        rows.shape[0] // tokens,
        hidden.data_ptr(),
        _DTYPES[hidden.dtype],
        rows.data_ptr(),
    )


def reduce_slots(rows: Tensor, weights: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """As kernels.reference.reduce_slots, rounded to `dtype`."""
    tokens, top_k = weights.shape
    out = torch.empty(tokens, rows.shape[1], dtype=dtype)
    weights = weights.to(torch.float32).contiguous()
    _native.reduce_slots(
        rows.data_ptr(), weights.data_ptr(), tokens, top_k, rows.shape[1], _DTYPES[dtype], out.data_ptr()
    )
    return out


def count_pairs(ids: Tensor, experts: int) -> list[int]:
    """As kernels.pairs.count_pairs."""
    assert ids.dtype is torch.int64 and ids.is_contiguous()
    workload: list[int] = _native.count_pairs(ids.data_ptr(), ids.numel(), experts)
    return workload


def order_pairs(ids: Tensor, experts: int, order: Sequence[int]) -> tuple[Tensor, list[int]]:
    """As kernels.pairs.order_pairs, of `experts` experts in all."""
    assert ids.dtype is torch.int64 and ids.is_contiguous()
    pairs = torch.empty(ids.numel(), dtype=torch.int64)
    return pairs, _native.order_pairs(ids.data_ptr(), len(pairs), experts, order, pairs.data_ptr())


class ExpertRecords:
    """All experts of a layer, packed in `layout`: `records[e]` is expert e. Keeps them alive."""

    def __init__(self, layout: ExpertLayout, records: Sequence[Tensor]) -> None:
        self.records = records
        self._layout = _layout(layout)
        self._addresses = _native.ExpertRecords([record.data_ptr() for record in records])

    def compute(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, int]:
        """One layer's step in one call: hidden [tokens, hidden], ids int64 and weights [tokens, top_k] -> (the weighted sum of
        each token's experts [tokens, hidden] in hidden's dtype, how many experts took part)."""
        hidden, ids, weights = hidden.contiguous(), ids.contiguous(), weights.contiguous()
        tokens, top_k = ids.shape
        assert ids.dtype == torch.int64 and weights.shape == ids.shape and hidden.shape[0] == tokens
        out = torch.empty_like(hidden)
        active = _native.compute_layer(
            self._layout,
            self._addresses,
            ids.data_ptr(),
            weights.data_ptr(),
            _DTYPES[weights.dtype],
            tokens,
            top_k,
            hidden.data_ptr(),
            _DTYPES[hidden.dtype],
            out.data_ptr(),
        )
        return out, active


class Linear:
    """x -> x W^T + bias for a packed W [rows, columns]; `packed` as kernels.packing.pack lays it out, bias float32 [rows]."""

    def __init__(
        self, packed: Tensor, rows: int, columns: int, format: Format, bias: Tensor | None = None
    ) -> None:
        self.rows, self.columns = rows, columns
        self._matrix = _native.Matrix(format.name, rows, columns)
        assert packed.is_contiguous() and packed.nbytes == self._matrix.bytes
        assert bias is None or (
            bias.dtype == torch.float32 and bias.is_contiguous() and bias.shape == (rows,)
        )
        self._tensors = packed, bias
        self._address, self._bias_address = packed.data_ptr(), 0 if bias is None else bias.data_ptr()

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., columns], float32, bfloat16 or float16 -> [..., rows] of the same dtype."""
        x = x.contiguous()
        shape = x.shape
        assert shape[-1] == self.columns
        out = x.new_empty((*shape[:-1], self.rows))
        dtype = _DTYPES[x.dtype]
        tokens = x.numel() // self.columns
        _native.linear(
            self._matrix,
            self._address,
            self.columns,
            self._bias_address,
            x.data_ptr(),
            dtype,
            tokens,
            out.data_ptr(),
        )
        return out


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """weight * (x / sqrt(mean(x^2) + epsilon)) over the last dimension, in float32; rounded before and after weight."""
    x = x.contiguous()
    width = x.shape[-1]
    assert weight.dtype == x.dtype and weight.is_contiguous() and weight.shape == (width,)
    out = torch.empty_like(x)
    _native.rms_norm(
        x.data_ptr(), weight.data_ptr(), _DTYPES[x.dtype], x.numel() // width, width, epsilon, out.data_ptr()
    )
    return out


ATTENTION_DTYPES = (torch.float32, torch.bfloat16)


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tokens: list[tuple[int, int, int, int, int, int]],
    scale: float,
    sinks: Tensor | None,
    out: Tensor,
) -> None:
    """Decoding: each of `tokens` attends to its own sequence's keys and values, after its own were added to them.

    query [heads, step's tokens, width], keys and values [kv heads, step's tokens, their width], of one of ATTENTION_DTYPES; out
    [step's tokens, heads, value width], of which the tokens' rows are written. tokens: (row, address of the sequence's keys
    [kv heads, capacity, width], of its values, capacity, place of the new token, first place it sees) each. sinks: one more
    logit a head, without a value.
    """
    assert query.stride(2) == keys.stride(2) == values.stride(2) == 1 and out.is_contiguous()
    if sinks is not None:
        sinks = sinks.to(torch.float32).contiguous()
    _native.attend(
        _DTYPES[query.dtype],
        query.shape[0],
        keys.shape[0],
        query.shape[2],
        values.shape[2],
        scale,
        (query.data_ptr(), query.stride(1), query.stride(0)),
        (keys.data_ptr(), keys.stride(1), keys.stride(0)),
        (values.data_ptr(), values.stride(1), values.stride(0)),
        0 if sinks is None else sinks.data_ptr(),
        tokens,
        out.data_ptr(),
    )


def repack(raw: Tensor, columns: int, format: Format, packed: Tensor) -> bool:
    """GGUF's blocks into packed tiles, values unchanged: raw uint8 [rows, row bytes] of Q8_0 for w8, Q4_0 for w4, MXFP4 for
    mxfp4; packed uint8 [format.matrix_bytes(rows, columns)]. False if a scale is not finite."""
    matrix = _native.Matrix(format.name, raw.shape[0], columns)
    assert raw.is_contiguous() and packed.is_contiguous() and packed.nbytes == matrix.bytes
    return bool(_native.repack(matrix, raw.data_ptr(), raw.shape[1], packed.data_ptr()))


def read_seconds(memory: Tensor) -> float:
    """Seconds in which the kernels' threads read `memory` once: what bounds every kernel that streams weights."""
    return float(_native.read_seconds(memory.data_ptr(), memory.nbytes))


def seconds() -> dict[str, float]:
    """Seconds callers have spent in kernels since the process began: experts, dense, attention, norm."""
    return dict(_native.seconds())


def variant() -> str:
    """The instruction set in use."""
    return str(_native.variant())


def threads() -> int:
    """Threads that compute, the caller's among them."""
    return int(_native.threads())


ROUTED_DTYPES = (torch.float32, torch.bfloat16)


def route(
    x: Tensor, weight: Tensor, top_k: int, normalise: bool, weights_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """x [tokens, hidden], weight [experts, hidden], both of one of ROUTED_DTYPES -> (logits [tokens, experts], the top_k largest
    of their softmax [tokens, top_k], over their sum if `normalise`, whose experts these are [tokens, top_k])."""
    x = x.contiguous()
    tokens, hidden = x.shape
    experts = weight.shape[0]
    assert weight.dtype == x.dtype and weight.is_contiguous() and weight.shape[1] == hidden
    logits = x.new_empty(tokens, experts)
    weights = torch.empty(tokens, top_k, dtype=weights_dtype)
    ids = torch.empty(tokens, top_k, dtype=torch.int64)
    _native.route(
        x.data_ptr(),
        weight.data_ptr(),
        _DTYPES[x.dtype],
        tokens,
        hidden,
        experts,
        top_k,
        normalise,
        logits.data_ptr(),
        weights.data_ptr(),
        _DTYPES[weights_dtype],
        ids.data_ptr(),
    )
    return logits, weights, ids


class Attention:
    """A whole attention module while decoding: query, key, value and output projections, norms of query and key (weight and
    epsilon), heads of one width, rotated in halves; `sinks` as in attend()."""

    def __init__(
        self,
        linears: Sequence[Linear],
        norms: Sequence[tuple[Tensor, float] | None],
        width: int,
        scale: float,
        sinks: Tensor | None,
    ) -> None:
        query, key, _, self._out = linears
        self.width, self.kv_heads = width, key.rows // width
        self._tensors = linears, norms, sinks = (
            linears,
            norms,
            None if sinks is None else sinks.float().contiguous(),
        )
        packed = [
            _native.PackedLinear(linear._matrix, linear._address, linear.columns, linear._bias_address)
            for linear in linears
        ]
        parts = [
            (0, 0, 0.0) if norm is None else (norm[0].data_ptr(), norm[0].numel(), norm[1]) for norm in norms
        ]
        address = 0 if sinks is None else sinks.data_ptr()
        self._module = _native.AttentionModule(
            *packed, *parts, query.rows // width, self.kv_heads, width, scale, address
        )

    def decode(
        self, x: Tensor, cos: Tensor, sin: Tensor, tokens: list[tuple[int, int, int, int, int, int]]
    ) -> Tensor:
        """x [..., hidden], cos and sin [..., width] for as many rows; tokens as in attend() -> the module's output, as x."""
        x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
        assert cos.dtype == sin.dtype == x.dtype and cos.shape == sin.shape and cos.shape[-1] == self.width
        rows = cos.numel() // self.width
        assert x.numel() == rows * x.shape[-1]
        out = x.new_empty((*x.shape[:-1], self._out.rows))
        _native.decode(
            self._module,
            x.data_ptr(),
            _DTYPES[x.dtype],
            rows,
            cos.data_ptr(),
            sin.data_ptr(),
            tokens,
            out.data_ptr(),
        )
        return out
