"""Decoder layers that decode natively: which ones do, that not a bit changes, and that whoever watches a part sees it."""

from __future__ import annotations

import pytest
import torch
from test_fused_attention import NARROW, close, load

from dali.fused.dense import FusedRMSNorm
from dali.fused.layer import DecodingLayer, fuse_layers
from dali.hooks.moe_layer import MoELayer
from dali.hooks.seam import dali_layer
from dali.kernels import native
from dali.step.context import StepContext
from dali.store.expert_pool import ExpertPool
from decoded import decoded
from decoding_families import DECODING, decoding_model
from families import FAMILIES, random_model

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
WHOLE = {
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "deepseek_v2",
    "olmoe",
    "gpt_oss",
}  # not: other routers and norms


def layers(llm) -> list[DecodingLayer]:
    return [m.forward for m in llm.model.modules() if isinstance(m.forward, DecodingLayer)]


def run_as_written(llm) -> None:
    for module in llm.model.modules():
        if isinstance(module.forward, DecodingLayer):
            module.forward = module.forward.plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_call_gives_the_bits_of_the_parts(tmp_path, monkeypatch, family, dtype):
    llm = load(tmp_path, monkeypatch, random_model(family, dtype=dtype))
    assert len(layers(llm)) == (3 if family in WHOLE else 0)
    natively = decoded(llm)
    counted = [(c.steps, c.routed_tokens, c.cpu, c.expert_bytes) for c in llm.telemetry.layers]
    workload = llm.telemetry.workload.tolist()
    assert [sum(tokens) for tokens in workload] == [layer.routed_tokens for layer in llm.telemetry.layers]
    llm.telemetry.clear()
    run_as_written(llm)
    for logits, wanted in zip(natively, decoded(llm), strict=True):
        assert close(logits, wanted) if family == NARROW else torch.equal(logits, wanted)
    assert counted == [(c.steps, c.routed_tokens, c.cpu, c.expert_bytes) for c in llm.telemetry.layers]
    assert workload == llm.telemetry.workload.tolist()


def test_layers_that_follow_one_another_are_one_run(tmp_path, monkeypatch):
    llm = load(tmp_path, monkeypatch, random_model("olmoe"))
    first, *others = layers(llm)
    assert others
    assert first.run.layers == [first, *others]
    assert all(layer.run is first.run for layer in others)


def test_layers_whose_rotations_differ_are_runs_of_their_own(tmp_path, monkeypatch):
    model = decoding_model("mellum", layer_types=["sliding_attention", *["full_attention"] * 2])
    llm = load(tmp_path, monkeypatch, model)
    assert [len(layer.run.layers) for layer in layers(llm)] == [1, 2, 2]
    llm.engine.decoder = None
    natively = decoded(llm)
    run_as_written(llm)
    assert all(map(torch.equal, natively, decoded(llm)))


@pytest.mark.parametrize("change", ["norm", "child", "limit", "gate"])
def test_a_layer_with_other_parts_splits_the_run(tmp_path, monkeypatch, change):
    llm = load(tmp_path, monkeypatch, random_model("qwen2_moe"))  # the layer in the middle is dense
    run_as_written(llm)
    layer = llm.model.model.layers[1]
    if change == "norm":
        layer.post_attention_layernorm = torch.nn.LayerNorm(64)
    elif change == "child":
        layer.extra = torch.nn.Identity()
    elif change == "limit":
        layer.mlp.swiglu_limit = 7.0
    else:
        layer.mlp.act_fn = torch.nn.SiLU()
    fuse_layers(llm.model)
    assert [len(layer.run.layers) for layer in layers(llm)] == [1, 1]
    natively = decoded(llm)
    run_as_written(llm)
    assert all(map(torch.equal, natively, decoded(llm)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [{"residual_multiplier": 0.25}, {}])
def test_another_sum_is_refused(tmp_path, monkeypatch, dtype, change):
    """The probe tells: nothing that the layer is read by has changed."""
    llm = load(tmp_path, monkeypatch, decoding_model("granitemoeshared", dtype, **change))
    run_as_written(llm)
    for layer in llm.model.model.layers:
        layer.forward = _adds_shared_twice(layer)
    fuse_layers(llm.model)
    assert not layers(llm)


def _adds_shared_twice(layer):
    plain = layer.forward
    return lambda hidden_states, **more: plain(hidden_states, **more) + layer.shared_mlp(hidden_states)


def _asks_for_more(forward):
    """As a layer that cannot do without a mask."""
    return lambda hidden_states, attention_mask, **more: forward(
        hidden_states, attention_mask=attention_mask + 0, **more
    )


def _returns_a_tuple(forward):
    return lambda *given, **named: (forward(*given, **named),)


@pytest.mark.parametrize("kind", [_asks_for_more, _returns_a_tuple])
def test_a_layer_called_or_answering_otherwise_runs_part_by_part(tmp_path, monkeypatch, kind):
    llm = load(tmp_path, monkeypatch, random_model("olmoe"))
    run_as_written(llm)
    layer = llm.model.model.layers[1]
    plain, layer.forward = layer.forward, kind(layer.forward)
    fuse_layers(llm.model)
    assert len(layers(llm)) == len(llm.model.model.layers) - 1
    assert not llm.telemetry.layers
    layer.forward = plain
    natively = decoded(llm)
    run_as_written(llm)
    assert all(map(torch.equal, natively, decoded(llm)))


def test_watched_parts_are_seen(tmp_path, monkeypatch):
    llm = load(tmp_path, monkeypatch, random_model("olmoe"))
    expected = decoded(llm)
    seen: list[int] = []
    experts = [m for m in llm.model.modules() if isinstance(dali_layer(m), MoELayer)]
    handle = experts[1].register_forward_pre_hook(lambda module, arguments: seen.append(len(arguments[0])))
    assert all(map(torch.equal, decoded(llm), expected))
    assert len(seen) == len(expected)
    handle.remove()
    assert all(map(torch.equal, decoded(llm), expected))
    assert len(seen) == len(expected)


def test_experts_of_a_pool_that_leases_no_whole_layer_run_part_by_part(tmp_path, monkeypatch):
    expected = decoded(load(tmp_path / "whole", monkeypatch, random_model("olmoe")))
    monkeypatch.setattr(ExpertPool, "whole_layers", False)
    llm = load(tmp_path / "spare", monkeypatch, random_model("olmoe"))
    assert not layers(llm)
    assert llm.engine.decoder is None
    assert all(map(torch.equal, decoded(llm), expected))


def test_many_sequences_run_part_by_part(tmp_path, monkeypatch):
    """Beyond a few tokens routers go through torch's product, whose sums differ: so must the layer's."""
    llm = load(tmp_path, monkeypatch, random_model("olmoe"))
    monkeypatch.setattr("decoded.TOKENS", [[5 + i, 6, 7] for i in range(9)])
    natively = decoded(llm)
    run_as_written(llm)
    assert all(map(torch.equal, natively, decoded(llm)))


def test_weights_that_moved_are_followed(tmp_path, monkeypatch):
    llm = load(tmp_path, monkeypatch, random_model("olmoe", dtype=torch.float32))
    expected = decoded(llm)
    for parameter in llm.model.parameters():
        parameter.data = parameter.data.clone()
    assert not layers(llm)[0].run.serves(StepContext([], 0, native=True))
    assert all(map(torch.equal, decoded(llm), expected))


@pytest.mark.parametrize("family", ["olmoe", "mixtral"])
def test_other_outputs_that_a_configuration_asks_for_are_not_collected(tmp_path, monkeypatch, family):
    plain = decoded(load(tmp_path / "plain", monkeypatch, random_model(family)))
    asked = {"output_router_logits": True, "output_hidden_states": True}
    llm = load(tmp_path / "asked", monkeypatch, random_model(family, **asked))
    assert all(map(torch.equal, decoded(llm), plain))
    assert layers(llm)[0].run.serves(StepContext([], 0, native=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_a_prompt_of_several_blocks_and_steps_gives_the_bits_of_the_parts(
    tmp_path, monkeypatch, family, dtype
):
    llm = load(tmp_path, monkeypatch, random_model(family, dtype=dtype))
    monkeypatch.setattr(llm, "ctx_size", 256)
    ids = [3 + 7 * i % 60 for i in range(150)]
    natively = list(llm.engine.score(llm.sequence(ids, max_tokens=1)))
    run_as_written(llm)
    plainly = list(llm.engine.score(llm.sequence(ids, max_tokens=1)))
    assert natively
    assert all(map(torch.equal, natively, plainly))


# Whose shared experts have a gate: beside attention, and beside delta nets and gated attention.
GATED = ["qwen2_moe", *(family for family in ("qwen3_next", "qwen3_5_moe_text") if family in DECODING)]


@pytest.mark.parametrize("family", ["olmoe", *GATED])
def test_a_prompt_is_a_call_a_layer(tmp_path, monkeypatch, family):
    llm = load(tmp_path, monkeypatch, decoding_model(family) if family in DECODING else random_model(family))
    monkeypatch.setattr(MoELayer, "__call__", lambda *given: pytest.fail("a part was run on its own"))
    assert len(decoded(llm)[0]) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", GATED)
def test_gates_of_shared_experts_give_the_same_bits_however_a_prompt_is_cut(
    tmp_path, monkeypatch, family, dtype
):
    """So many tokens that torch's sigmoid takes vectors of them; what leaves the last layer, as linears round to 8 bits."""
    make = decoding_model if family in DECODING else random_model
    llm = load(tmp_path, monkeypatch, make(family, dtype=dtype))
    llm.engine.decoder = None
    monkeypatch.setattr(llm, "ctx_size", 256)
    ids = [3 + 7 * i % 60 for i in range(45)]
    last, norm, seen = llm.model.model.norm, FusedRMSNorm.forward, []
    monkeypatch.setattr(
        FusedRMSNorm,
        "forward",
        lambda self, x: (seen.append(x[0]) if self is last else None, norm(self, x))[1],
    )

    def computed(step_tokens: int) -> torch.Tensor:
        seen.clear()
        llm.engine.scheduler.step_tokens = step_tokens
        list(llm.engine.score(llm.sequence(ids, max_tokens=1)))
        return torch.cat(seen)

    whole = computed(512)
    assert len(whole) == len(ids)
    assert all(torch.equal(computed(step_tokens), whole) for step_tokens in (5, 1))
    run_as_written(llm)
    assert all(torch.equal(computed(step_tokens), whole) for step_tokens in (512, 5, 1))


def test_rows_of_several_pieces_are_gated(tmp_path, monkeypatch):
    sizes = {"hidden_size": 2112, "head_dim": 16, "num_hidden_layers": 1}
    model = random_model("qwen2_moe", **sizes, mlp_only_layers=[], initializer_range=0.02)
    with torch.no_grad():
        model.model.layers[0].mlp.gate.weight *= 0.1  # so wide a router would choose by its last bits
    llm = load(tmp_path, monkeypatch, model)
    assert layers(llm)[0].routed.shared_gate is not None
    natively = decoded(llm, steps=1)
    run_as_written(llm)
    assert all(map(torch.equal, natively, decoded(llm, steps=1)))
