"""A whole model over a GPU: its dense part by dali's kernels there, with the bits of the CPU's, in one native call a step.

What the model is made of is told by the CPU's way to decode in one call (fused/model.py); a model without one, or with parts that
there are no kernels for, runs its dense part as torch and transformers do. Prompts take the same kernels as decoding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from dali.compiled import library
from dali.devices.cuda import Gpu, gpu_errors
from dali.engine.engine import Engine
from dali.errors import DaliError
from dali.fused.attention import DecodingAttention
from dali.fused.dense import PackedLinear
from dali.fused.model import DecodingModel
from dali.fused.router import FusedRouter
from dali.kernels import native
from dali.kernels.formats import FORMATS
from dali.kernels.gpu.experts import PASSES
from dali.runtime.gpu import GpuExecutor, Posted
from dali.runtime.look_ahead import LookAhead
from dali.runtime.predict import GateShift, LinearMap
from dali.runtime.prefetch import Predictor
from dali.step.context import Segment, StepContext

Foresight = tuple[
    int, list[native.Router]
]  # how many MoE layers on, and the routers that predict that one and those after it

MOST_HIGHEST = 64  # logits that the kernels find for sure


class GpuModel:
    """Takes a causal model's place in every step."""

    def __init__(
        self,
        gpu: Gpu,
        model: nn.Module,
        decoder: DecodingModel,
        module: Callable[[str, dict[str, int]], Any],
        ctx_size: int,
    ) -> None:
        """`module(name, macros)`: the compiled kernels of a file. ValueError for a model with parts that there are none for."""
        self._gpu, self.described_by = gpu, decoder
        attention = [layer.mixer for layer in decoder.layers if isinstance(layer.mixer, DecodingAttention)]
        if len(attention) < len(decoder.layers):
            raise ValueError("there are no kernels for recurrent layers")
        if decoder.softcap is not None or any(layer.parts.beside for layer in decoder.layers):
            raise ValueError("there are no kernels for soft caps and experts beside a dense network")
        numbers = {name: number for number, name in enumerate(FORMATS)}
        formats = {linear.format.name for linear in model.modules() if isinstance(linear, PackedLinear)}
        linears = [
            (name, *(module("linear", {"FORMAT": numbers[name], "PASSES": passes}) for passes in PASSES))
            for name in formats
        ]
        self._native = library.GpuModel(
            gpu.native,
            decoder.native._model,
            module("common", {}),
            linears,
            GpuExecutor.most_tokens,
            ctx_size,
        )
        self.bytes: int = self._native.bytes  # of the GPU's memory, from put() on
        self._keeps = [Keeper(mixer, gpu.place) for mixer in attention]
        self._routers = [layer.routed.router for layer in decoder.layers if layer.routed is not None]
        routed = iter(range(len(self._routers)))
        self._moe = [None if layer.routed is None else next(routed) for layer in decoder.layers]
        self._foresight: list[Foresight] = []
        self._cut = False  # whether the latest step was, so that highest() knows its last piece alone

    def put(self) -> None:
        """Send the weights. DaliError where the GPU lacks the memory."""
        with gpu_errors(self._gpu.name):
            self._native.put()

    def follow(self, executor: GpuExecutor, predictor: Predictor | None) -> None:
        """From here on `executor` plans the steps, by what `predictor` predicts. DaliError as above."""
        self._executor = executor
        self._foresight = [] if predictor is None else foresight(predictor, self._routers)
        routers = [(distance, [router._router for router in ahead]) for distance, ahead in self._foresight]
        with gpu_errors(self._gpu.name):
            self._native.follow(executor.device.layers, routers)
        layers, dtype = executor.device.layers, self.described_by.dtype
        most, router = executor.most_tokens, self._routers[0]
        self._x = _there(layers.x, dtype, most, router.weight.shape[1])
        self._weights = _there(layers.weights, torch.float32, most, router.routing.top_k)

    def serves(self, step: StepContext) -> bool:
        """All steps: the model's own forward knows nothing of the GPU. DaliError where somebody has changed or watches a part
        of the model, which would not be seen; found out in steps with a prompt, as it takes as long as a few layers."""
        if any(segment.prefill for segment in step.segments) and not self.described_by.watch.untouched:
            raise DaliError(
                "A part of the model was changed, or is watched, since it was loaded; on a GPU it would not be seen.",
                "Take the hook away, or load the model on the CPU.",
            )
        return True

    def decode(self, step: StepContext, ids: list[int], positions: list[int], wanted: list[int]) -> Tensor:
        """As Decoder.decode; logits are on the GPU."""
        logits = torch.empty(
            len(wanted), self.described_by.vocabulary, dtype=self.described_by.dtype, device=self._gpu.place
        )
        with self._executor.whole_step():
            pieces = list(self._pieces(step.segments))
            self._cut = len(pieces) > 1
            for segments in pieces:
                begin, end = segments[0].start, segments[-1].start + segments[-1].tokens
                rows = [row - begin for row in wanted if begin <= row < end]
                first = sum(row < begin for row in wanted)
                self._step(
                    segments, ids[begin:end], positions[begin:end], rows, logits[first : first + len(rows)]
                )
        self._gpu.hand_over()
        return logits

    def highest(self, row: int, most: int) -> tuple[Tensor, Tensor] | None:
        """As Decoder.highest."""
        if most > MOST_HIGHEST or self._cut:
            return None
        with gpu_errors(self._gpu.name):
            ids, values = self._native.highest(row)
        return (torch.tensor(values), torch.tensor(ids)) if ids else None

    def _pieces(self, segments: list[Segment]) -> Iterator[list[Segment]]:
        """Segments, cut where they are more rows than the kernels' memory was made for."""
        most, piece, rows = self._executor.most_tokens, list[Segment](), 0
        for segment in segments:
            while rows + segment.tokens > most:
                if head := most - rows:
                    piece.append(replace(segment, tokens=head))
                    segment = replace(
                        segment,
                        start=segment.start + head,
                        tokens=segment.tokens - head,
                        position=segment.position + head,
                    )
                yield piece
                piece, rows = [], 0
            piece.append(segment)
            rows += segment.tokens
        yield piece

    def _step(
        self, segments: list[Segment], ids: list[int], positions: list[int], rows: list[int], logits: Tensor
    ) -> None:
        rotations = [kind.of(positions) for kind in self.described_by.rotations]
        runs = [keep.runs(segments) for keep in self._keeps]
        queue, executor = self._gpu.queue(), self._executor
        executor.begin_step(len(ids))
        if executor.planner is None:
            self._native.start(ids, rotations, runs, rows, queue)
            for layer, moe in enumerate(self._moe):
                self._layer(layer, moe, len(ids))
            self._native.head(logits.data_ptr())
            return
        outcomes = self._native.step(executor.planner, ids, rotations, runs, rows, logits.data_ptr(), queue)
        for moe, outcome in enumerate(outcomes):
            later = moe + self._foresight[moe][0] if self._foresight else 0
            executor.count_step(moe, len(ids) * self._weights.shape[1], later, outcome)

    def _layer(self, layer: int, moe: int | None, tokens: int) -> None:
        """A layer's step whose plan is made in Python."""
        foresee = bool(self._foresight) and self._executor.prefetcher.wanted
        self._native.dense(layer, foresee)
        if moe is None:
            return
        distance, ahead = self._foresight[moe] if foresee else (0, [])
        count = tokens * sum(router.routing.top_k for router in ahead)
        posted = Posted(self._x[:tokens], self._weights[:tokens], moe + distance if ahead else None, count)
        self._executor.execute_posted(moe, posted, self._native.part)


@contextmanager
def own_layers(engine: Engine) -> Iterator[None]:
    """Where a GPU's kernels take the model's place, give it its own layers back, on the CPU: calibration watches routers."""
    decoder = engine.decoder
    if isinstance(decoder, GpuModel):
        engine.decoder = None
    try:
        yield
    finally:
        engine.decoder = decoder


class Keeper:
    """Where a layer keeps the keys and values of a step's tokens, on the GPU."""

    def __init__(self, attention: DecodingAttention, place: torch.device) -> None:
        self._layer, self._window = attention.layer, attention.window
        self._keys, self._values = (part.to(place) for part in attention.samples)

    def runs(self, segments: list[Segment]) -> list[native.TokenRun]:
        """Of each segment, all its tokens."""
        found, row = [], 0
        for segment in segments:
            keys, values, tokens = self._keys, self._values, segment.tokens
            if tokens > 1:
                keys, values = (part.expand(-1, tokens, -1) for part in (keys, values))
            place = segment.state.kv(self._layer).place(row, keys, values, self._window)
            found.append((place, tokens, self._window or 0))
            row += tokens
        return found


def foresight(predictor: Predictor, routers: list[FusedRouter]) -> list[Foresight]:
    """What predicts later layers from each MoE layer, as routers of its input: a shift of that is one of their logits' bias."""
    predictors = list(predictor.predictors) if isinstance(predictor, LookAhead) else [predictor]
    distances = [each.distance for each in predictors if isinstance(each, GateShift | LinearMap)]
    assert distances == list(accumulate([distances[0], *([1] * (len(predictors) - 1))]))
    found = []
    for layer in range(len(routers)):
        ahead = [router for each in predictors if (router := _ahead(each, layer, routers)) is not None]
        found.append((distances[0], ahead))
    return found


def _ahead(predictor: Predictor, layer: int, routers: list[FusedRouter]) -> native.Router | None:
    if isinstance(predictor, LinearMap):
        if layer >= len(predictor.maps):
            return None
        weights = predictor.maps[layer].float()
        routing = native.Routing(predictor.top_k, torch.float32)
        return native.Router(weights[:-1].T.contiguous(), routing, weights[-1].contiguous())
    assert isinstance(predictor, GateShift)
    target = layer + predictor.distance
    if target >= len(routers):
        return None
    router = routers[target].native
    if predictor.shifts is None:
        return router
    weight, bias, _ = router._tensors
    shifted = weight.float() @ predictor.shifts[layer].float() + (0 if bias is None else bias.float())
    return native.Router(weight, router.routing, shifted, router.correction)


def _there(address: int, dtype: torch.dtype, *shape: int) -> Tensor:
    """The host's memory at an address, as a tensor."""
    count = torch.Size(shape).numel()
    return torch.frombuffer(
        (ctypes.c_char * (count * dtype.itemsize)).from_address(address), dtype=dtype
    ).view(shape)
