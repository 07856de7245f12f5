"""Lossy parts on live layers: each fate of a (token, choice) pair gives what the plain formula says, whatever the schedule."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dali
from accelerated import accelerate, answers, calibration_text, load, same, slow_machine
from dali import systems
from dali.devices import HOST
from dali.hardware.cost import CostModel
from dali.hardware.profile import load as load_profile
from dali.hooks.seam import dali_layer
from dali.kernels.reference import expert_ffn
from dali.loading.room import HEADROOM
from dali.offload import calibrate
from dali.offload.lossy import CpuExperts, LossyLayers
from dali.options import LoadOptions
from dali.step.context import Segment, StepContext, running
from dali.step.state import SequenceState
from dali.systems import DROPPED, KEPT, LATER, LOW, LossyParts, Rerouted, Routed
from dali.telemetry import Telemetry
from families import random_model, save_model
from runtime.tiny_runtime import (
    EXPERTS,
    LAYERS,
    MOST_TOKENS,
    SIZE,
    TOP_K,
    Model,
    Setting,
    inputs,
    run,
    tiny_executor,
    tiny_model,
)

TOKENS = 5
FATES = {"low": LOW, "later": LATER, "dropped": DROPPED}
SEEDS = range(6)


def step(tokens: int, prefill: bool = False) -> StepContext:
    return StepContext([Segment(SequenceState(), 0, tokens, 0, prefill)], tokens)


def fate_of(routed: Routed, fate: int) -> Rerouted:
    """Every pair but the token's first meets `fate` where its expert is odd; the last layer is left alone."""
    odd = (routed.ids % 2 == 1) & (np.arange(TOP_K) > 0) & (routed.layer < LAYERS - 1)
    return Rerouted(routed.ids, routed.weights, np.where(odd, fate, KEPT))


def low_model() -> Model:
    """Other experts, so that low precision cannot be mistaken for full."""
    return tiny_model("w4", seed=1)


def lossy_layers(model: Model, seed: int, parts: LossyParts, scores: Any = None, low: bool = False) -> Any:
    executor = tiny_executor(Setting(assign="greedy", cache="lru", slots=12, seed=seed), model)
    other = low_model() if low else model
    costs = CostModel(load_profile("paper"), SIZE, other.layout.format.name, MOST_TOKENS)
    beside = CpuExperts(other.pool, costs)
    counts: dict[str, int] = {}
    return LossyLayers(executor, parts, beside, scores, Telemetry(modelled=True), counts), counts


def plain(model: Model, hidden: Tensor, fate: int) -> list[Tensor]:
    """Every layer's output by the formula, one pair at a time."""
    outputs, late = [], torch.zeros_like(hidden)
    for layer, router in enumerate(model.routers):
        _, weights, ids = router(hidden)
        fates = fate_of(Routed(layer, LAYERS, ids.numpy(), weights.numpy(), set()), fate).fates
        out, put_off = late, torch.zeros_like(hidden)
        for token in range(len(hidden)):
            for slot in range(TOP_K):
                what, expert = fates[token, slot], int(ids[token, slot])
                source = low_model() if what == LOW else model
                x = hidden[token : token + 1]
                y = weights[token, slot] * expert_ffn(source.layout, source.records[layer][expert], x)[0]
                if what in (KEPT, LOW):
                    out[token] += y
                elif what == LATER:
                    put_off[token] += y
        late = put_off
        outputs.append(out)
        hidden = hidden + out
    return outputs


@pytest.mark.parametrize("fate", FATES)
@torch.inference_mode()
def test_each_fate_is_what_it_says(fate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dali.offload.lossy.compute_experts", tiny_model().kernel)
    expected = plain(tiny_model(), inputs(TOKENS, 3), FATES[fate])
    for seed in SEEDS:
        parts = LossyParts(reroute=lambda routed: fate_of(routed, FATES[fate]))
        layers, counts = lossy_layers(tiny_model(), seed, parts, low=fate == "low")
        calls = [layers.layer(index) for index in range(LAYERS)]
        for _ in range(3):
            with running(step(TOKENS)):
                found = tiny_model().forward(calls, inputs(TOKENS, 3))
            for out, right in zip(found, expected, strict=True):
                torch.testing.assert_close(out, right, rtol=1e-4, atol=1e-5)
        changed = {name: count for name, count in counts.items() if count and name != "pairs"}
        assert counts["pairs"] == 3 * LAYERS * TOKENS * TOP_K
        assert list(changed) == [{"low": "low_precision", "later": "put_off", "dropped": "left_out"}[fate]]
        assert 0 < min(changed.values()) < counts["pairs"] / 2


@pytest.mark.parametrize("fate", [LOW, LATER])
@torch.inference_mode()
def test_the_hosts_seconds_are_counted(fate: int) -> None:
    for seed in SEEDS:
        parts = LossyParts(reroute=lambda routed: fate_of(routed, fate))
        layers, _ = lossy_layers(tiny_model(), seed, parts)
        telemetry = layers._executor._telemetry = layers._telemetry
        calls = [layers.layer(index) for index in range(LAYERS)]
        for _ in range(3):
            with running(step(TOKENS)):
                tiny_model().forward(calls, inputs(TOKENS, 3))
        spans = [span for span in layers._executor.device.clock.timeline if span.stream == HOST]
        assert {f"lossy {layer}" for layer in range(LAYERS - 1)} <= {span.label for span in spans}
        total = telemetry.total()
        assert total.cpu_seconds == pytest.approx(sum(span.end - span.start for span in spans))
        if fate == LOW:  # in the layer they belong to
            assert all(
                counters.seconds
                >= sum(span.end - span.start for span in spans if span.label == f"lossy {layer}")
                for layer, counters in enumerate(telemetry.layers)
            )


@torch.inference_mode()
def test_what_is_asked_for_may_be_other_experts() -> None:
    """Expert 0 alone, with the router's weights."""
    model = tiny_model()

    def reroute(routed: Routed) -> Rerouted:
        return Rerouted(np.zeros_like(routed.ids), routed.weights, np.full(routed.ids.shape, KEPT))

    layers, counts = lossy_layers(model, 0, LossyParts(reroute=reroute))
    hidden = inputs(TOKENS, 3)
    _, weights, ids = model.routers[0](hidden)
    with running(step(TOKENS)):
        found = layers.run(0, hidden, ids, weights)
    right = weights.sum(1, keepdim=True) * expert_ffn(model.layout, model.records[0][0], hidden)
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
    assert counts["rerouted"] == TOP_K * int((ids != 0).all(1).sum())


@torch.inference_mode()
def test_predictions_are_of_the_layer_before() -> None:
    model, seen = tiny_model(), []

    def reroute(routed: Routed) -> None:
        seen.append((routed.predicted, routed.resident))

    def scores(layer: int, hidden: Tensor) -> Tensor:
        return model.routers[layer](hidden)[0].softmax(-1)

    layers, _ = lossy_layers(model, 0, LossyParts(reroute=reroute, predicts=True), scores)
    inputs_of: list[Tensor] = []

    def call(index: int) -> Any:
        def layer(hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            inputs_of.append(hidden)
            return layers.run(index, hidden, ids, weights)

        return layer

    for _ in range(2):
        seen.clear(), inputs_of.clear()
        with running(step(TOKENS)):
            model.forward([call(index) for index in range(LAYERS)], inputs(TOKENS, 3))
        assert seen[0][0] is None
        for layer in range(1, LAYERS):
            np.testing.assert_array_equal(seen[layer][0], scores(layer, inputs_of[layer - 1]).numpy())
    assert all(resident <= set(range(EXPERTS)) for _, resident in seen)
    assert any(resident for _, resident in seen)


@torch.inference_mode()
def test_prompts_are_left_alone_and_an_interrupted_step_leaves_nothing() -> None:
    model = tiny_model()
    hidden, setting = inputs(TOKENS, 3), Setting(assign="greedy", cache="lru", slots=12)
    exact = run(tiny_executor(setting, model), model, TOKENS, range(3, 4))[0]
    layers, counts = lossy_layers(model, 0, LossyParts(reroute=lambda routed: fate_of(routed, LATER)))
    calls = [layers.layer(index) for index in range(LAYERS)]
    with running(step(TOKENS, prefill=True)):
        assert all(map(torch.equal, model.forward(calls, hidden), exact))
    assert not counts["pairs"]
    _, weights, ids = model.routers[0](hidden)
    with running(step(TOKENS)):
        first = layers.run(0, hidden, ids, weights)
    assert not torch.allclose(first, exact[0], rtol=1e-3)
    with running(step(TOKENS)):  # what the first layer put off was never taken
        again = layers.run(0, hidden, ids, weights)
    assert torch.equal(first, again)


# Whole systems in a live model


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("systems")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(folder / "cache"))
        patch.setattr(calibrate, "TEXT", calibration_text(folder / "text.txt", 200))
        yield folder


@pytest.fixture(scope="module")
def live(folder: Path) -> Any:
    """A tiny model, how to load it on an accelerator with 12 slots, and its answers on the CPU."""
    directory = save_model(random_model("qwen3_moe"), folder / "model")
    machine = f"sim:{slow_machine(folder)}"

    def accelerated(policy: str, **options: Any) -> dali.LLM:
        return load(directory, **{"device": machine, "vram": 12 * 8192, "policy": policy} | options)

    return SimpleNamespace(directory=directory, accelerated=accelerated, answers=answers(load(directory)))


@pytest.mark.parametrize("name", systems.names())
def test_a_system_by_name_answers_as_the_cpu_does(live: Any, name: str) -> None:
    llm = live.accelerated(name)
    assert same(answers(llm), live.answers)
    assert (llm.stats()["policy"], llm.stats()["lossy"]) == (name, {})
    assert llm.executor.guards.guarded == systems.get(name).guarded


def test_it_gets_what_it_decides_by(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """HybriMoE: the router's scores, and the next three layers' predictions; FineMoE: embeddings."""
    scored, ahead, embedded = [], [], []
    llm = live.accelerated("hybrimoe")
    policies = llm.executor.policies
    observe, plan = policies.cache.observe, policies.prefetch.plan
    monkeypatch.setattr(policies.cache, "observe", lambda *a: (scored.append(a[-1]), observe(*a))[1])
    monkeypatch.setattr(policies.prefetch, "plan", lambda *a: (ahead.append(a[0]), plan(*a))[1])
    answers(llm)
    for signals in scored:
        assert signals.scores.shape == (len(signals.ids), 8)
        np.testing.assert_allclose(signals.scores.sum(1), 1, atol=1e-4)
        chosen = np.take_along_axis(signals.scores, signals.ids, axis=1)
        np.testing.assert_allclose(chosen / chosen.sum(1, keepdims=True), signals.weights, atol=1e-2)
    assert {tuple(forecast.layer for forecast in forecasts) for forecasts in ahead} == {(1, 2), (2,)}

    llm = live.accelerated("finemoe")
    begin = llm.engine.begin
    llm.engine.begin = lambda step: (embedded.append(step), begin(step))[1]
    answers(llm)
    assert all(step.embeddings.shape == (len(step.sequences), 64) for step in embedded)
    table = llm.model.get_input_embeddings().weight
    assert any(np.allclose(embedded[0].embeddings[0], row) for row in table.float().numpy())


@pytest.mark.parametrize("name", systems.names(lossy=True))
def test_with_its_lossy_parts_it_answers_otherwise_and_says_so(live: Any, name: str) -> None:
    llm = live.accelerated(name, lossy=True, seed=3)
    found, lossy = answers(llm), llm.stats()["lossy"]
    assert lossy["parts"] == list(systems.get(name).lossy)
    if name == "daop":  # its predictions begin in the sixth layer, and this model has three
        assert lossy["pairs"] > 0
        assert same(found, live.answers)
        return
    assert not same(found, live.answers)
    for (_, logits), (_, exact) in zip(found, live.answers, strict=True):
        assert torch.equal(logits[0], exact[0]) == (name != "mixtral-offloading")  # the prompt's
        assert logits.isfinite().all()


def test_daop_reroutes_a_deeper_model(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dali.systems.daop.FIRST_PREDICTED", 1)
    llm = live.accelerated("daop", lossy=True)
    assert not same(answers(llm), live.answers)
    lossy = llm.stats()["lossy"]
    assert 0 < lossy["rerouted"] < lossy["pairs"]


# Bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": "best"}, r"no system 'best'.*\n.*hobbit"),
        ({"policy": "lru:fifo"}, r"no system 'lru:fifo'"),
        ({"policy": "lru", "cache": "lru"}, r"^policy lru .* what cache would"),
        ({"policy": "lru", "n_cpu_moe": 1}, r"^policy lru .* what n_cpu_moe would"),
        ({"policy": "lru", "lossy": True}, r"has no lossy parts.*\n.*daop, hobbit"),
        ({"lossy": True}, r"none is named.*\n.* policy one of daop"),
        ({"policy": "lru", "device": "cpu"}, r"^policy is about an accelerator.*\nGive device"),
        ({"lossy": True, "device": "cpu"}, r"^lossy is about an accelerator"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, live: Any, options: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr("dali.entry.load_source", lambda *arguments: pytest.fail("loaded"))
    with pytest.raises(dali.UsageError, match=words):
        load(live.directory, **{"device": "sim:paper"} | options)


def test_few_bits_need_a_format_that_holds_them(live: Any) -> None:
    with pytest.raises(dali.UsageError, match="in bf16"):
        live.accelerated("mixtral-offloading", lossy=True, quant="bf16")


def test_a_second_set_of_experts_is_within_the_memory_that_is_allowed(
    live: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dali.fused.dense.pack_linears", lambda *arguments: None)  # done when all is loaded
    llm = live.accelerated("hobbit", lossy=True)
    beside = dali_layer(llm.model.model.layers[0].mlp.experts).func.__self__._beside
    alone = llm.expert_bytes + llm.dense_bytes + HEADROOM
    both = alone + sum(record.nbytes for layer in beside.pool.records for record in layer)
    live.accelerated("hobbit", lossy=True, ram=both)
    live.accelerated("hobbit", ram=alone)
    with pytest.raises(dali.DaliError, match=r"ram leaves .* for them.\nRaise .*ram by 1 B"):
        live.accelerated("hobbit", lossy=True, ram=both - 1)


def test_what_refuses_leaves_the_experts_as_they_are(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = load(live.directory)
    before = [record.clone() for layer in llm.loaded.pool.records for record in layer]

    def refuses(*arguments: Any) -> None:
        raise dali.DaliError("The device has no memory.", "Give it some.")

    monkeypatch.setattr("dali.offload.build._residency", refuses)
    with pytest.raises(dali.DaliError, match="no memory"):
        accelerate(
            llm, LoadOptions(device="sim:paper", policy="mixtral-offloading", lossy=True), lambda: None
        )
    assert all(map(torch.equal, before, [record for layer in llm.loaded.pool.records for record in layer]))


def test_routers_that_cannot_be_called_alone_are_no_basis_for_predicted_routing(
    live: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dali.hooks.seam._routes", lambda *arguments: False)
    with pytest.raises(dali.DaliError, match=r"Qwen3MoeForCausalLM has none.*\n.*out lossy"):
        live.accelerated("daop", lossy=True)
    notes: list[str] = []
    llm = live.accelerated("hybrimoe", notify=notes.append)
    assert any("without router scores" in note for note in notes)
    assert any("Prefetching is off" in note for note in notes)
    assert same(answers(llm), live.answers)
