"""Answers that grow beyond the length at which a rotary embedding changes its frequencies; what models answer for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import dali
from dali.llm import LLM
from families import COMMON, random_model, save_model
from logits import dali_logits, random_prompts

NEW = 20
FACTORS = {"long_factor": [4.0 + i for i in range(8)], "short_factor": [1.0 + 0.1 * i for i in range(8)]}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, **FACTORS}


def mellum() -> Any:
    """A rotary embedding with parameters for each kind of layer: two limits."""
    config = CONFIG_MAPPING["mellum"](
        **COMMON
        | {
            "head_dim": 16,
            "intermediate_size": 40,
            "moe_intermediate_size": 40,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "sliding_window": 7,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": LONGROPE | {"original_max_position_embeddings": 16},
                "sliding_attention": LONGROPE | {"original_max_position_embeddings": 22},
            },
        }
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()


@pytest.fixture(scope="module", params=["phimoe", "mellum"])
def model(request):
    return random_model("phimoe") if request.param == "phimoe" else mellum()


@pytest.fixture(scope="module")
def llm(model, tmp_path_factory) -> LLM:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return dali.load(save_model(model, tmp_path_factory.mktemp("model")), quant="f32")


def prompt(seed: int, tokens: int) -> list[int]:
    return torch.randint(3, 97, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def uncached(model: Any, ids: list[int], new: int) -> list[int]:
    """Greedy tokens, each from a forward pass over all before it."""
    ids = list(ids)
    for _ in range(new):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[-new:]


def greedy(llm: LLM, ids: list[int], new: int = NEW) -> dali.Completion:
    return llm.generate(ids, temperature=0, max_tokens=new, ignore_eos=True)


@pytest.mark.parametrize("length", [10, 15, 16, 17, 21])
def test_an_answer_that_crosses_a_limit_is_that_of_a_model_without_a_cache(model, llm, length):
    for seed in range(4):
        ids = prompt(seed, length)
        assert greedy(llm, ids).tokens == uncached(model, ids, NEW)


def test_sequences_that_cross_at_different_times_share_the_engine(model, llm):
    prompts = [prompt(seed, length) for seed, length in enumerate((4, 12, 15, 18))]
    found = llm.generate(prompts, temperature=0, max_tokens=NEW, ignore_eos=True)
    assert [one.tokens for one in found] == [uncached(model, ids, NEW) for ids in prompts]


def test_nothing_kept_of_one_regime_serves_another(model, llm):
    """The answer's last token makes it long, but was not computed: what is kept still is a short sequence's."""
    ids = prompt(5, 14)
    ids += greedy(llm, ids, 3).tokens
    assert len(ids) == 17
    longer = greedy(llm, [*ids, 7])
    assert longer.cached_tokens == 0
    assert longer.tokens == uncached(model, [*ids, 7], NEW)
    again = greedy(llm, [*ids, 7])
    assert again.tokens == longer.tokens
    assert again.cached_tokens == 17  # of the same regime


def test_a_model_that_answers_for_every_row_is_asked_for_the_last_ones(dali_tiny, monkeypatch):
    """Some of transformers' models have no `logits_to_keep`, and take no notice of it."""
    monkeypatch.setenv("DALI_KERNELS", "torch")  # nothing decodes around the model's own forward
    llm = dali.load(dali_tiny, quant="f32")
    prompts = random_prompts((9, 5), vocabulary=1000)
    expected = dali_logits(llm, prompts, 6)
    plain, rows = llm.model.forward, []

    def every_row(logits_to_keep, **keywords):
        out = plain(**keywords)
        rows.append(out.logits.shape[1])
        return out

    monkeypatch.setattr(llm.model, "forward", every_row)
    found = dali_logits(llm, prompts, 6)
    assert max(rows) > 2
    for ours, theirs in zip(found, expected, strict=True):  # torch's sums depend on the rows beside
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
