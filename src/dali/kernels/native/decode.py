"""Whole decoder layers while decoding, and models of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dali.compiled import library
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import Format
from dali.kernels.native.attention import Attention, NormParts, TokenRun, norm_parts
from dali.kernels.native.experts import LayerHandle, native_layout
from dali.kernels.native.library import DTYPES
from dali.kernels.native.linear import Linear
from dali.kernels.native.recurrence import NativeStretch, RecurrentModule
from dali.kernels.native.route import Router, address_of

Mixer = Attention | RecurrentModule  # where a layer's tokens meet those before them
Kept = tuple[list[TokenRun], list[list[NativeStretch]]]  # by a mixer: the one or the other


class Mlp:
    """A dense feed-forward network: down of activation(gate) * up, or of activation(up). first: gate and up, one linear with the
    rows of both, or up."""

    def __init__(self, first: Sequence[Linear], down: Linear, activation: str) -> None:
        rows = sum(linear.rows for linear in first)
        assert rows == 2 * down.columns or (rows == down.columns and len(first) == 1)
        self._linears = first, down
        self._mlp = library.Mlp([linear._packed for linear in first], down._packed, activation)


@dataclass(frozen=True)
class LayerNorms:
    """A decoder layer's norms; None: there is none."""

    before_attention: NormParts | None = None
    after_attention: NormParts | None = None
    before_mlp: NormParts | None = None
    after_mlp: NormParts | None = None


@dataclass(frozen=True)
class BesideNorms:
    """Norms of a layer whose experts stand beside a dense MLP: of the router's input, of theirs, of their output and of the
    MLP's."""

    before_router: NormParts | None = None
    before_experts: NormParts | None = None
    after_experts: NormParts | None = None
    after_mlp: NormParts | None = None


class DecoderLayer:
    """A whole decoder layer while decoding: norms, attention or what it has instead, and then experts with their router, a dense
    MLP, or both, the MLP being the experts' shared one; or the one half or the other. `shared_gate` [hidden]: the sigmoid of its
    product with the input scales the shared one's output. `residual_scale` multiplies what is added to the input, `output_scale`
    [1] what it gives. `beside`: experts stand beside the MLP, with norms of their own. Where the experts lie is told anew in
    every call. `workload` [experts]: tokens that each one got, to be added to."""

    def __init__(
        self,
        hidden: int,
        dtype: torch.dtype,
        norms: LayerNorms,
        mixer: Mixer | None,
        experts: tuple[Router, ExpertLayout] | None = None,
        mlp: Mlp | None = None,
        shared_gate: Tensor | None = None,
        residual_scale: float = 1.0,
        beside: BesideNorms | None = None,
        output_scale: Tensor | None = None,
        workload: NDArray[np.int64] | None = None,
    ) -> None:
        assert any(part is not None for part in (mixer, experts, mlp))
        assert beside is None or (experts is not None and mlp is not None)
        router, layout = experts or (None, None)
        self.dtype, self.mixer = dtype, mixer
        every = norms.before_attention, norms.after_attention, norms.before_mlp, norms.after_mlp
        self._parts = norms, router, mlp, shared_gate, beside, output_scale, workload
        others = beside or BesideNorms()
        apart = others.before_router, others.before_experts, others.after_experts, others.after_mlp
        self._layer = library.DecoderLayer(
            hidden,
            tuple(map(norm_parts, every)),
            None if mixer is None else mixer._module,
            None if router is None else router._router,
            None if layout is None else native_layout(layout),
            0 if workload is None else workload.ctypes.data,
            None if mlp is None else mlp._mlp,
            address_of(shared_gate),
            residual_scale,
            tuple(map(norm_parts, apart)),
            address_of(output_scale),
        )


NO_EXPERTS = None if library is None else library.ExpertRecords([])


def _addresses(records: Sequence[LayerHandle | None]) -> list[object]:
    return [NO_EXPERTS if layer is None else layer._addresses for layer in records]


def decode_layers(
    layers: Sequence[DecoderLayer],
    records: Sequence[LayerHandle | None],
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    kept: list[Kept],
) -> tuple[Tensor, list[tuple[int, float]]]:
    """One layer after another. records: of each layer's experts, if it has any; x [1, rows, hidden], cos and sin [1, rows,
    given]; kept: by each layer's mixer -> (the last one's output, as x, and of each layer how many experts took part
    and the seconds they took). IndexError for a router's choice that has no record."""
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    rows = x.numel() // x.shape[-1]
    mixers = [layer.mixer for layer in layers]
    assert all(mixer.rotary.takes(cos, sin, rows) for mixer in mixers if isinstance(mixer, Attention))
    out = torch.empty_like(x)
    outcomes = library.decode_layers(
        [layer._layer for layer in layers],
        _addresses(records),
        x.data_ptr(),
        DTYPES[x.dtype],
        rows,
        cos.data_ptr(),
        sin.data_ptr(),
        kept,
        out.data_ptr(),
    )
    return out, outcomes


class Embeddings:
    """A table [vocabulary, hidden] whose rows come as `dtype` and times `scale`: of that type as it lies, or packed in
    `format`."""

    def __init__(
        self,
        table: Tensor,
        vocabulary: int,
        hidden: int,
        format: Format | None,
        dtype: torch.dtype,
        scale: float,
    ) -> None:
        assert table.is_contiguous()
        self.hidden, self.dtype, self._table = hidden, dtype, table
        if format is None:
            assert table.shape == (vocabulary, hidden) and table.dtype == dtype
            self._embeddings = library.Embeddings(table.data_ptr(), vocabulary, scale)
        else:
            matrix = library.Matrix(format.name, vocabulary, hidden)
            assert table.nbytes == matrix.bytes
            self._embeddings = library.Embeddings(matrix, table.data_ptr(), scale)


class DecodingModel:
    """A whole model while decoding: embeddings, layers, norm, head, whose logits are divided by logits_divisor. rotations: of
    each layer, which of a call's rotations it takes."""

    def __init__(
        self,
        embeddings: Embeddings,
        layers: Sequence[DecoderLayer],
        rotations: list[int],
        norm: NormParts,
        head: Linear,
        logits_divisor: float = 1.0,
    ) -> None:
        assert norm[0].shape == (embeddings.hidden,) and head.columns == embeddings.hidden
        assert norm[0].dtype in (embeddings.dtype, torch.float32) and len(rotations) == len(layers)
        self._tensors, self._layers, self._head = (embeddings, norm), layers, head
        self._dtype = embeddings.dtype
        self._model = library.DecodingModel(
            DTYPES[embeddings.dtype],
            embeddings._embeddings,
            [layer._layer for layer in layers],
            rotations,
            norm_parts(norm),
            head._packed,
            logits_divisor,
        )

    def decode(
        self,
        records: Sequence[LayerHandle | None],
        ids: list[int],
        rotations: list[list[tuple[int, int]]],
        kept: list[Kept],
    ) -> tuple[Tensor, list[tuple[int, float]]]:
        """One token a sequence. records: of each layer's experts, if it has any; rotations: of each kind, addresses of each
        token's cos and sin, [given]; kept: by each layer's mixer -> (logits [tokens, vocabulary], of each layer what
        decode_layers() tells). IndexError for an id beyond the vocabulary."""
        logits = torch.empty(len(ids), self._head.rows, dtype=self._dtype)
        return logits, self._model.decode(_addresses(records), ids, rotations, kept, logits.data_ptr())
