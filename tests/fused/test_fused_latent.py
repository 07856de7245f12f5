"""Attention modules that keep latents: which ones do, what they keep, and how near transformers they are."""

from __future__ import annotations

import pytest
import torch

import dali
from dali.fused.dense import PackedLinear
from dali.fused.latent import keep_latents
from dali.fused.release import release
from dali.hooks.latent import SharedLatents, shared_latents
from dali.kernels import native
from dali.kernels.formats import get_format
from dali.kernels.packing import pack, unpack
from dali.store.gguf.pack import Losses
from decoding_families import decoding_model
from families import random_model, save_model
from logits import expected_logits, largest_difference, random_prompts

pytestmark = pytest.mark.skipif(not native.enabled(), reason="there are no compiled kernels")
LATENT = ["deepseek_v2", "deepseek_v3", "glm4_moe_lite"]
RANK, ROTATED, HEADS = 32, 8, 4


def load(tmp_path, monkeypatch, model, quant):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    return dali.load(save_model(model, tmp_path / "model"), quant=quant)


def latents(model) -> list[SharedLatents]:
    return [found for module in model.modules() if (found := shared_latents(module)) is not None]


def narrow(family, dtype=torch.float32):
    changes = {"kv_lora_rank": RANK, "qk_rope_head_dim": ROTATED, "num_key_value_heads": HEADS}
    return (random_model if family == "deepseek_v2" else decoding_model)(family, dtype=dtype, **changes)


@pytest.mark.parametrize("family", LATENT)
def test_full_precision_is_transformers(tmp_path, monkeypatch, family):
    model = narrow(family)
    llm = load(tmp_path, monkeypatch, model, "f32")
    assert len(latents(llm.model)) == 3
    prompts = random_prompts((21, 13, 4))
    expected = [expected_logits(model, tokens) for tokens in prompts]
    assert largest_difference(llm, prompts, expected) < 1e-4


@pytest.mark.parametrize("quant", ["f32", "w8"])
@pytest.mark.parametrize("family", LATENT)
def test_a_token_keeps_its_latent_and_what_is_rotated(tmp_path, monkeypatch, family, quant):
    llm = load(tmp_path, monkeypatch, narrow(family, torch.bfloat16), quant)
    sequence = llm.sequence(list(range(5, 25)), max_tokens=3, ignore_eos=True)
    llm.loop.complete([sequence])
    for layer in range(3):
        keys, values = sequence.state.kv(layer).kept
        assert keys.shape == (1, 22, RANK + ROTATED)
        assert keys.dtype == torch.bfloat16
        assert not values.numel()


@pytest.mark.parametrize("family", LATENT)
def test_weights_are_held_once(tmp_path, monkeypatch, family):
    llm = load(tmp_path, monkeypatch, narrow(family), "w8")
    assert {latent.heads.format.name for latent in latents(llm.model)} == {"w8"}
    assert not [name for name, _ in llm.model.named_parameters() if "kv_b_proj" in name]


@pytest.mark.parametrize("quant", ["f32", "w8"])
def test_released_it_is_the_linear_again(tmp_path, monkeypatch, quant):
    model = narrow("deepseek_v3")
    expected = model.model.layers[1].self_attn.kv_b_proj.weight.detach()
    llm = load(tmp_path, monkeypatch, model, quant)
    release(llm.model)
    linear = llm.model.model.layers[1].self_attn.kv_b_proj
    assert type(linear) is torch.nn.Linear
    assert not latents(llm.model)
    tolerance = 0.0 if quant == "f32" else 1 / 127
    assert float((linear.weight - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize(("format", "lost"), [("q4k", True), ("w8", True), ("bf16", False)])
def test_what_packed_linears_lose_is_told(format, lost):
    model = random_model("deepseek_v3", kv_lora_rank=256, qk_rope_head_dim=ROTATED, num_key_value_heads=HEADS)
    model.set_attn_implementation("dali")
    modules = [layer.self_attn for layer in model.model.layers]
    for module in modules:
        linear = module.kv_b_proj
        packed = pack(linear.weight.detach(), get_format(format))
        module.kv_b_proj = PackedLinear(packed, linear, get_format(format))
    before = [
        unpack(m.kv_b_proj.packed, m.kv_b_proj.out_features, m.kv_b_proj.in_features, get_format(format))
        for m in modules
    ]
    losses = Losses()
    keep_latents(model, get_format("w8"), losses)
    pairs = [
        (latent.heads.up, up)
        for module, up in zip(modules, before, strict=True)
        if (latent := shared_latents(module)) is not None
    ]
    kept, up = (torch.cat(each) for each in zip(*pairs, strict=True))
    expected = float((kept - up).norm() / up.norm())
    if lost:
        assert losses.relative() == {f"{format} to w8": pytest.approx(expected, rel=0.2)}  # of a head each
        assert 0 < expected < 0.01
    else:
        assert losses.relative() == {}
        assert expected == 0


def test_a_module_that_computes_otherwise_keeps_keys_and_values():
    model = narrow("deepseek_v3")
    model.set_attn_implementation("dali")
    module = model.model.layers[1].self_attn
    plain = module.forward

    def negated(hidden_states, **keywords):
        linear = module.kv_b_proj
        if isinstance(linear, SharedLatents):
            return plain(hidden_states, **keywords)
        return tuple(-part if part is not None else None for part in plain(hidden_states, **keywords))

    module.forward = negated
    keep_latents(model, None)
    assert [shared_latents(layer.self_attn) is not None for layer in model.model.layers] == [
        True,
        False,
        True,
    ]
