"""Recurrent modules in one native call: which ones are, that not a bit depends on how a sequence is cut, what makes them step
aside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_fused_attention import load

from dali.fused.recurrent import FusedRecurrent, _fused
from dali.fused.release import release
from dali.kernels import native
from decoding_families import DECODING, decoding_model
from families_sweep.tiny import Variant, folders, random_model
from logits import dali_logits, random_prompts

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
# Kimi's delta attention: a decay a channel, through fewer values and at once.
BY_CHANNEL = [family for family in ("kimi_linear", "bailing_hybrid") if family in folders()]
FAMILIES = [f for f in ("lfm2_moe", "qwen3_next", "qwen3_5_moe_text") if f in DECODING] + BY_CHANNEL
PROMPTS = random_prompts((13, 4))


def model_of(family: str, dtype: torch.dtype = torch.float32) -> Any:
    if family in DECODING:
        return decoding_model(family, dtype)
    changes = {"kda_safe_gate": False} if family == "bailing_hybrid" else {}
    model = random_model(Variant(family, family, changes=changes)).to(dtype)
    model.config.dtype = dtype
    return model


def recurrent(llm) -> list[Any]:
    return [m for m in llm.model.modules() if isinstance(m.forward, FusedRecurrent)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_not_a_bit_depends_on_cuts(tmp_path, monkeypatch, family, dtype):
    llm = load(tmp_path, monkeypatch, model_of(family, dtype))
    assert len(recurrent(llm)) == 2
    whole = dali_logits(llm, PROMPTS, 512)
    for step_tokens in (1, 5):
        assert all(map(torch.equal, dali_logits(llm, PROMPTS, step_tokens), whole))
    assert torch.equal(dali_logits(llm, PROMPTS[:1], 512)[0], whole[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_what_transformers_computes(tmp_path, monkeypatch, family):
    llm = load(tmp_path, monkeypatch, model_of(family))
    natively = dali_logits(llm, PROMPTS, 5)
    for module in recurrent(llm):
        module.forward = module.forward.plain
    for ours, theirs in zip(natively, dali_logits(llm, PROMPTS, 5), strict=True):
        # Activations are rounded to 8 bits between the layers: a difference in the last bit may be one of those.
        assert (ours - theirs).abs().max() < 0.1 * theirs.abs().max()
        assert (ours - theirs).abs().median() < 0.01 * theirs.abs().max()


@pytest.mark.parametrize("family", [*FAMILIES, *(family for family in ("nemotron_h",) if family in DECODING)])
def test_released_it_still_goes_on_from_earlier_tokens(tmp_path, monkeypatch, family):
    llm = load(tmp_path, monkeypatch, model_of(family))
    natively = dali_logits(llm, PROMPTS, 5)
    release(llm.model)
    llm.engine.decoder, llm.engine._native = None, False
    assert not recurrent(llm)
    by_torch = dali_logits(llm, PROMPTS, 512)
    for others in (natively, dali_logits(llm, PROMPTS, 1), dali_logits(llm, PROMPTS, 5)):
        for ours, theirs in zip(
            others, by_torch, strict=True
        ):  # linears and experts round activations to 8 bits
            assert torch.cosine_similarity(ours, theirs).min() > 0.95


@pytest.mark.parametrize("family", FAMILIES)
def test_one_that_computes_otherwise_is_left_alone(tmp_path, monkeypatch, family):
    llm = load(tmp_path, monkeypatch, model_of(family))
    module = recurrent(llm)[0]
    module.forward = module.forward.plain
    assert _fused(module) is not None
    plain = module.forward
    module.forward = lambda *arguments, **keywords: 1.01 * plain(*arguments, **keywords)
    assert _fused(module) is None
    module.forward = plain
    module.extra = torch.nn.Identity()
    assert _fused(module) is None


def test_one_that_is_watched_runs_as_transformers_wrote_it(tmp_path, monkeypatch):
    llm = load(tmp_path, monkeypatch, model_of(FAMILIES[0]))
    module, seen = recurrent(llm)[0], []
    part = module.get_submodule("out_proj")
    handle = part.register_forward_hook(lambda *_: seen.append(1))
    dali_logits(llm, PROMPTS[:1], 512)
    assert seen
    handle.remove()
    seen.clear()
    dali_logits(llm, PROMPTS[:1], 512)
    assert not seen
