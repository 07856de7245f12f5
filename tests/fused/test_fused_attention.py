"""Attention modules that decode in one native call: which ones do, and that not a bit changes."""

from __future__ import annotations

import pytest
import torch

import dali
from dali.fused.attention import DecodingAttention, fuse_attention
from dali.fused.layer import DecodingLayer, fuse_layers
from dali.kernels import native
from decoded import decoded
from decoding_families import DECODING, OLDER, decoding_model
from families import FAMILIES, random_model, save_model

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
NARROW = "deepseek_v2"  # torch multiplies so few complex numbers otherwise


def attentions(llm) -> list[DecodingAttention]:
    return [m.forward for m in llm.model.modules() if isinstance(m.forward, DecodingAttention)]


def load(tmp_path, monkeypatch, model, quant="w8"):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv(native.VARIABLE, raising=False)
    return dali.load(save_model(model, tmp_path / "model"), quant=quant)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_call_gives_the_bits_of_the_model_s_own_code(tmp_path, monkeypatch, family, dtype):
    llm = load(tmp_path, monkeypatch, random_model(family, dtype=dtype))
    fused = attentions(llm)
    assert len(fused) == 3
    natively = decoded(llm)
    for module in llm.model.modules():
        if isinstance(module.forward, DecodingAttention):
            module.forward = module.forward.plain
    for logits, wanted in zip(natively, decoded(llm), strict=True):
        assert close(logits, wanted) if family == NARROW else torch.equal(logits, wanted)


def test_a_module_outside_of_a_fused_layer_is_one_call(tmp_path, monkeypatch):
    llm = load(tmp_path, monkeypatch, random_model("phimoe"))  # its norms keep its layers as they are
    calls: list[int] = []
    decode = native.Attention.decode
    monkeypatch.setattr(
        native.Attention, "decode", lambda self, *given: (calls.append(1), decode(self, *given))[1]
    )
    steps = len(decoded(llm))
    assert len(calls) == 3 * steps  # three layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "turning", "given", "follow"),
    [
        ("glm4_moe", {"halves"}, 16, False),  # of heads of 32
        ("gpt_oss", {"halves"}, 8, False),  # of heads of 16: half the angles
        ("ernie4_5_moe", {"neighbours"}, 16, False),
        ("exaone_moe", {"halves", "none"}, 16, False),
        ("hunyuan_v1_moe", {"halves"}, 16, True),
        ("flex_olmo", {"halves"}, 16, False),
        ("mimo_v2_flash", {"halves"}, 8, False),
    ],
)
def test_the_probe_tells_the_rotation(tmp_path, monkeypatch, family, turning, given, follow, dtype):
    model = (decoding_model if family in DECODING else random_model)(family, dtype=dtype)
    fused = attentions(load(tmp_path, monkeypatch, model))
    assert len(fused) == 3
    assert {attention.native.rotary.turning for attention in fused} == turning
    assert {attention.native.rotary.given for attention in fused} - {0} == {given}
    assert {attention.native.projections.norms_follow for attention in fused} == {follow}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("interleaved", "turning"), [(True, "unzipped"), (False, "halves")])
@pytest.mark.parametrize("query_rank", [None, 24])
def test_latent_attention(tmp_path, monkeypatch, query_rank, interleaved, turning, dtype):
    """Keys that are turned otherwise, but all alike, would attend alike as long as none come from a prompt."""
    changes = {"rope_interleave": interleaved, "q_lora_rank": query_rank}
    llm = load(tmp_path, monkeypatch, decoding_model("deepseek_v3", dtype, **changes))
    fused = attentions(llm)
    assert [attention.native.rotary.turning for attention in fused] == [turning] * 3
    natively = decoded(llm)
    run_as_written(llm)
    assert all(map(torch.equal, natively, decoded(llm)))


@pytest.mark.skipif(OLDER, reason="this transformers lays complex numbers out otherwise")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "same"), [(32, torch.equal), (8, lambda *both: close(*both))])
def test_rotations_by_complex_numbers(tmp_path, monkeypatch, width, same, dtype):
    model = random_model("deepseek_v2", dtype=dtype, qk_rope_head_dim=width)
    llm = load(tmp_path, monkeypatch, model)
    assert len(attentions(llm)) == 3
    natively = decoded(llm)
    run_as_written(llm)
    assert all(map(same, natively, decoded(llm)))


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).abs().max()) < 0.05 * float(other.abs().max())


def run_as_written(llm) -> None:
    for module in llm.model.modules():
        while isinstance(module.forward, DecodingAttention | DecodingLayer):
            module.forward = module.forward.plain


@pytest.mark.parametrize("error", [AssertionError, KeyError, RuntimeError, NotImplementedError])
def test_a_rotary_module_that_raises_leaves_all_as_it_is(tmp_path, monkeypatch, error):
    llm = load(tmp_path, monkeypatch, random_model("olmoe"))
    run_as_written(llm)

    def refuse(x, position_ids):
        raise error

    llm.model.model.rotary_emb.forward = refuse
    fuse_attention(llm.model)
    fuse_layers(llm.model)
    assert not attentions(llm)


def test_rotations_of_another_dtype_than_probed_run_as_written(tmp_path, monkeypatch):
    llm = load(tmp_path, monkeypatch, random_model("olmoe"))
    llm.engine.decoder = None
    rotary = llm.model.model.rotary_emb
    plain = rotary.forward
    rotary.forward = lambda x, position_ids: tuple(part.bfloat16() for part in plain(x, position_ids))
    natively = decoded(llm)
    run_as_written(llm)
    assert all(map(torch.equal, natively, decoded(llm)))


def test_a_module_that_is_called_otherwise_runs_as_written(tmp_path, monkeypatch):
    llm = load(tmp_path, monkeypatch, random_model("olmoe"))
    module = llm.model.model.layers[1].self_attn

    def wants_a_mask(hidden_states, position_embeddings, attention_mask):
        return hidden_states + attention_mask

    module.forward = wants_a_mask
    fuse_attention(llm.model)
    assert module.forward is wants_a_mask


def test_clipped_projections_and_full_precision_run_as_written(tmp_path, monkeypatch):
    assert not attentions(load(tmp_path / "a", monkeypatch, random_model("olmoe", clip_qkv=0.5)))
    assert not attentions(load(tmp_path / "b", monkeypatch, random_model("olmoe"), quant="f32"))
