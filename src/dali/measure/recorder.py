"""Recording a live run's routing as a trace: hooks on the model's own routers."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dali.engine.sequence import Sequence
from dali.errors import DaliError
from dali.fused.model import DecodingModel
from dali.hooks import seam
from dali.llm import LLM, Prompt
from dali.measure.gpu_routing import GpuRouting, Routed
from dali.offload.calibrate import load_predictor
from dali.offload.dense import dense_size
from dali.offload.gpu_model import GpuModel
from dali.progress import Meter, silent
from dali.replay.shapes import Shape
from dali.replay.traces.trace import Array, Trace
from dali.runtime.predict import next_router
from dali.runtime.prefetch import Predictor
from dali.step.context import StepContext, current_step

# What policies ask for: (predictor, distances).
PREDICTIONS = (("next_gate", (1, 2, 3, 4)), ("residual", (1,)), ("ridge", (1, 2, 3)))


@dataclass
class _Recording:
    """One sequence's tokens so far, a list entry a step."""

    prefill: list[Array] = field(default_factory=list)
    ids: list[Array] = field(default_factory=list)
    weights: list[Array] = field(default_factory=list)
    scores: list[Array] = field(default_factory=list)
    gate_inputs: list[Array] = field(default_factory=list)
    embeddings: list[Array] = field(default_factory=list)


class _Watch:
    """What the routers of one forward pass were given and answered: a router's last answer before its layer's experts run, as
    predictions call it too."""

    def __init__(self, model: Any, routers: Many[Any], hidden: bool) -> None:
        self.step: StepContext | None = None
        self.embeddings: Tensor | None = None
        self._seen: list[Routed] = []
        self._config = model.config.get_text_config()
        self._last: tuple[Tensor, tuple[Tensor, Tensor, Tensor]] | None = None
        self._handles = [router.register_forward_hook(self._routed) for router in routers]
        experts = seam.experts_modules(model).values()
        self._handles += [module.register_forward_pre_hook(self._run) for module in experts]
        if hidden:
            self._handles.append(model.get_input_embeddings().register_forward_hook(self._embedded))

    def take(self) -> list[Routed]:
        """Of each MoE layer in the latest step; given once."""
        seen, self._seen = self._seen, []
        return seen

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _routed(
        self, router: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        self._last = inputs[0].reshape(-1, inputs[0].shape[-1]), outputs

    def _run(self, experts: Any, inputs: tuple[Tensor, ...]) -> None:
        assert self._last is not None, "experts ran before any router"
        self.step = current_step()
        given, (logits, weights, ids) = self._last
        self._seen.append(Routed(given, seam.router_scores(logits, self._config), weights, ids))

    def _embedded(self, embedding: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.embeddings = output.reshape(-1, output.shape[-1])


def record(
    llm: LLM,
    prompts: Many[Prompt],
    batch: int = 1,
    hidden: bool = False,
    meter: Meter = silent,
    **sampling: Any,
) -> Trace:
    """Answer the prompts, `batch` side by side, and return where their tokens were routed.

    `hidden` adds gate inputs, token embeddings and what the predictors made of them. DaliError: the routers cannot be watched;
    UsageError: a prompt that cannot be answered.
    """
    routers = seam.routers(llm.model, llm.layout.shape.hidden)
    if routers is None:
        raise DaliError(
            f"The routers of {type(llm.model).__name__} answer in a form that cannot be recorded.",
            "Record a model of another family.",
        )
    sequences = [llm.sequence(prompt, **sampling) for prompt in prompts]
    recordings = {sequence.number: _Recording() for sequence in sequences}
    advance = meter("Recording", len(sequences))
    watch: _Watch | GpuRouting
    if isinstance(llm.engine.decoder, GpuModel):
        watch = GpuRouting(llm, seam.scores(routers, llm.model.config.get_text_config()), hidden)
    else:
        watch = _Watch(llm.model, routers, hidden)

    def keep(live: list[Sequence]) -> None:
        _keep(watch, live, recordings, hidden)
        advance(sum(sequence.finish_reason is not None for sequence in live))

    try:
        llm.loop.complete(sequences, at_once=batch, fresh=True, after_step=keep)
    finally:
        watch.close()
    trace = _trace(llm, list(recordings.values()), routers, hidden, meter)
    return replace(trace, meta={**trace.meta, "batch": batch, "sampling": sampling})


def _keep(
    watch: _Watch | GpuRouting, live: Many[Sequence], recordings: Mapping[int, _Recording], hidden: bool
) -> None:
    """Give each sequence its rows of the step that just ran."""
    step, watch.step = watch.step, None
    seen = watch.take()
    assert step is not None, "no router ran in this step"
    ids = torch.stack([one.ids for one in seen], dim=1).cpu().numpy()
    weights = torch.stack([one.weights for one in seen], dim=1).float().cpu().numpy()
    scores = torch.stack([one.scores for one in seen], dim=1).cpu().numpy()
    inputs = torch.stack([one.inputs for one in seen], dim=1).float().cpu().numpy() if hidden else None
    embeddings = watch.embeddings.float().cpu().numpy() if hidden and watch.embeddings is not None else None
    for segment in step.segments:
        sequence = next(sequence for sequence in live if sequence.state is segment.state)
        recording = recordings[sequence.number]
        rows = slice(segment.start, segment.start + segment.tokens)
        recording.prefill.append(np.full(segment.tokens, segment.prefill))
        recording.ids.append(ids[rows])
        recording.weights.append(_half(weights[rows]))
        recording.scores.append(_half(scores[rows]))
        if inputs is not None and embeddings is not None:
            recording.gate_inputs.append(_half(inputs[rows]))
            recording.embeddings.append(_half(embeddings[rows]))


def _half(array: Array) -> Array:
    """In half precision where its range allows."""
    return array.astype(np.float16) if np.abs(array).max() < np.finfo(np.float16).max else array


def _trace(llm: LLM, recordings: Many[_Recording], routers: Many[Any], hidden: bool, meter: Meter) -> Trace:
    def joined(name: str) -> Array:
        return np.concatenate([part for recording in recordings for part in getattr(recording, name)])

    lengths = [sum(len(part) for part in recording.ids) for recording in recordings]
    experts = llm.loaded.pool.experts
    ids = joined("ids").astype(np.uint8 if experts <= 256 else np.uint16)
    gate_inputs = joined("gate_inputs") if hidden else None
    predicted = {} if gate_inputs is None else _predictions(llm, routers, gate_inputs, ids.dtype, meter)
    meta = {
        "model": llm.name,
        "n_experts": experts,
        "top_k": ids.shape[2],
        "n_layers": ids.shape[1],
        "source": "dali trace",
        "shape": _shape(llm).as_meta(),
    }
    return Trace(
        llm.name,
        meta,
        ids,
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        (~joined("prefill")).astype(np.uint8),
        joined("weights"),
        joined("scores"),
        gate_inputs,
        joined("embeddings") if hidden else None,
        predicted,
    )


@torch.inference_mode()
def _predictions(
    llm: LLM, routers: Many[Any], gate_inputs: Array, dtype: Any, meter: Meter
) -> dict[tuple[str, int], Array]:
    """What each predictor makes of the recorded gate inputs; rows without a later layer are 0."""
    layers = gate_inputs.shape[1]
    predictors: dict[tuple[str, int], Predictor] = {
        (kind, distance): load_predictor(
            kind,
            distance,
            llm.engine,
            llm.tokenizer,
            routers,
            llm.loaded.top_k,
            llm.name,
            llm.loaded.fingerprint,
            meter,
        )
        for kind, distances in PREDICTIONS
        for distance in distances
        if distance < layers
    }
    norms = _norms(llm, layers)
    if norms is not None and layers > 1:
        predictors["next_router", 1] = next_router(routers, norms)
    return {
        (kind, distance): _predicted(predictor, distance, llm, gate_inputs, dtype)
        for (kind, distance), predictor in predictors.items()
    }


def _predicted(predictor: Predictor, distance: int, llm: LLM, gate_inputs: Array, dtype: Any) -> Array:
    """Its ids [tokens, layers, top_k], in chunks."""
    like = next(llm.model.parameters())
    tokens, layers, _ = gate_inputs.shape
    ids = np.zeros((tokens, layers, llm.loaded.top_k), dtype)
    for layer in range(layers - distance):
        for begin in range(0, tokens, 1024):
            rows = torch.from_numpy(gate_inputs[begin : begin + 1024, layer]).to(like)
            predicted = predictor.predict(layer, rows)
            assert predicted is not None, "it reaches past the last layer"
            ids[begin : begin + 1024, layer] = predicted[1].cpu().numpy()
    return ids


def _norms(llm: LLM, layers: int) -> list[Tensor] | None:
    """The weights of the norm before each router, where decoding in one call knows them."""
    decoder = llm.engine.decoder
    if isinstance(decoder, GpuModel):
        decoder = decoder.described_by
    parts = [layer.parts for layer in decoder.layers] if isinstance(decoder, DecodingModel) else []
    norms = [one.norms.before_mlp for one in parts if one.routed is not None and one.beside is None]
    weights = [norm[0] for norm in norms if norm is not None]
    return weights if len(weights) == layers else None


def _shape(llm: LLM) -> Shape:
    shape, layers = llm.layout.shape, llm.loaded.pool.layers
    nbytes, parameters, kernels = dense_size(llm.model)
    return Shape(
        shape.hidden,
        shape.intermediate,
        len(shape.matrices),
        llm.layout.format_name,
        llm.layout.weight_bytes,
        parameters // layers,
        nbytes // layers,
        max(kernels // layers, 1),
    )
