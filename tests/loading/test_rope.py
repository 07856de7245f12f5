"""How far rotary positions reach, and stretching them."""

from __future__ import annotations

import json
import shutil

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

import dali
from dali.errors import UsageError
from dali.loading.context import check_context
from dali.loading.locate import BUNDLED
from dali.loading.rope import scale_rope
from dali.options import LoadOptions
from gguf_models import gguf_model, rewrite, save_gguf

ORIGINAL = "original_max_position_embeddings"


def yarn(factor: float, original: int, **more: float) -> dict:
    return {"rope_type": "yarn", "factor": factor, ORIGINAL: original, "rope_theta": 1e4} | more


@pytest.mark.parametrize(
    ("rope", "tokens"),
    [
        ({}, 512),
        ({"rope_type": "default", "rope_theta": 1e4}, 512),
        (yarn(4.0, 512), 2048),
        (
            yarn(4.0, 128),
            512,
        ),  # the file's length is the stretched one already, as DeepSeek-V2 and gpt-oss write it
        (yarn(4.0, 64), 512),
        ({"type": "yarn", "factor": 4.0}, 2048),
        ({"rope_type": "linear", "factor": 2.5}, 1280),
        ({"rope_type": "dynamic", "factor": 4.0}, 512),
        ({"rope_type": "llama3", "factor": 8.0, ORIGINAL: 128}, 512),
        ({"rope_type": "longrope", "factor": 8.0, ORIGINAL: 256}, 512),
        ({"rope_type": "yarn", "factor": None}, 512),
        ({"rope_type": "linear", "factor": "4"}, 512),  # which loading refuses
        ({"full_attention": yarn(4.0, 512)}, 512),
    ],
)
def test_what_a_models_files_say(rope, tokens):
    assert scale_rope(rope, 512, LoadOptions(), "m") == (rope, tokens)


@pytest.mark.parametrize(
    ("rope", "asked", "parameters", "tokens"),
    [
        ({"rope_theta": 1e4}, {"rope_scale": 2}, {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, 1024),
        ({"rope_theta": 1e4}, {"rope_scaling": "yarn", "rope_scale": 4}, yarn(4.0, 512), 2048),
        ({"rope_theta": 1e4}, {"rope_scaling": "yarn", "rope_scale": 4, "yarn_orig_ctx": 256}, yarn(4.0, 256), 1024),
        (yarn(4.0, 128, beta_fast=16), {"rope_scale": 8}, yarn(8.0, 128, beta_fast=16), 1024),
        (yarn(4.0, 128), {"yarn_orig_ctx": 256}, yarn(4.0, 256), 1024),
        (yarn(4.0, 128), {"rope_scaling": "yarn"}, yarn(4.0, 128), 512),
    ],
)  # fmt: skip
def test_what_the_user_asks_for(rope, asked, parameters, tokens):
    assert scale_rope(rope, 512, LoadOptions(**asked), "m") == (parameters, tokens)


@pytest.mark.parametrize(
    ("rope", "asked", "problem"),
    [
        ({"rope_type": "llama3"}, {"rope_scale": 2}, "m has rotary positions of its own kind"),
        ({"full_attention": {}}, {"rope_scale": 2}, "m has rotary positions of its own kind"),
        ({}, {"rope_scaling": "yarn"}, "rope_scaling yarn does not say how far m is stretched"),
        (yarn(4.0, 128), {"rope_scaling": "linear"}, "rope_scaling linear does not say how far"),
        (
            {},
            {"rope_scale": 2, "yarn_orig_ctx": 128},
            "yarn_orig_ctx is about YaRN, and the scaling is linear",
        ),
    ],
)
def test_what_cannot_be_asked_for(rope, asked, problem):
    with pytest.raises(UsageError, match=problem):
        scale_rope(rope, 512, LoadOptions(**asked), "m")


@pytest.fixture
def stretched(tmp_path):
    """dali-tiny with a config.json as people edit it for more context: with the older name of the field."""
    model = shutil.copytree(BUNDLED / "dali-tiny", tmp_path / "tiny")
    config = json.loads((model / "config.json").read_text())
    config["rope_scaling"] = {"type": "yarn", "factor": 4.0, ORIGINAL: 512}
    (model / "config.json").write_text(json.dumps(config))
    return model


def test_yarn_in_config_json_makes_the_context_longer(stretched):
    check_context(stretched, LoadOptions(ctx_size=2048))
    with pytest.raises(UsageError, match=r"2049 is out of range.\ntiny takes 2 to 2048 tokens"):
        check_context(stretched, LoadOptions(ctx_size=2049))
    llm = dali.load(stretched)
    assert llm.ctx_size == 2048
    prompt = [5 + i % 99 for i in range(600)]
    answer = llm.generate(prompt, temperature=0, max_tokens=3, ignore_eos=True)
    assert len(answer.tokens) == 3


def scores(llm: dali.LLM, prompt: list[int]) -> torch.Tensor:
    return torch.cat(list(llm.engine.score(llm.sequence(prompt))))


def test_asking_for_yarn_gives_the_same_as_config_json(stretched):
    asked = dali.load(rope_scaling="yarn", rope_scale=4)
    assert asked.ctx_size == 2048
    same, plain = dali.load(stretched), dali.load()
    logits = [scores(llm, [5 + i % 99 for i in range(40)]) for llm in (asked, same, plain)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


def test_stretching_a_gguf_file(tmp_path, monkeypatch):
    """Against transformers, which is given the same parameters."""
    monkeypatch.setenv("DALI_KERNELS", "torch")  # float activations, as transformers computes
    model = gguf_model("qwen3_moe")
    path = save_gguf(model, tmp_path / "m.gguf")
    trained = model.config.max_position_embeddings
    prompt = [3 + i % 90 for i in range(30)]
    for given, rope in (
        ({"rope_scaling": "yarn", "rope_scale": 2}, yarn(2.0, trained)),
        ({"rope_scale": 2}, {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
    ):
        check_context(path, LoadOptions(ctx_size=2 * trained, **given))
        llm = dali.load(path, **given)
        assert llm.ctx_size == 2 * trained
        config = type(model.config)(**(model.config.to_dict() | {"rope_parameters": rope}))
        reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        reference.load_state_dict(model.state_dict())
        with torch.inference_mode():
            wanted = reference.eval()(torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(scores(llm, prompt), wanted, rtol=0, atol=float(wanted.abs().max()) * 2e-5)


FLOAT, TEXT = gguf.GGUFValueType.FLOAT32, gguf.GGUFValueType.STRING


@pytest.mark.parametrize(
    ("added", "kind", "factor"),
    [
        ({"scaling.factor": (2.0, FLOAT)}, "linear", 2),
        ({"scale_linear": (2.0, FLOAT)}, "linear", 2),
        ({"scaling.type": ("yarn", TEXT), "scaling.factor": (2.0, FLOAT)}, "yarn", 2),
        ({"scaling.type": ("none", TEXT), "scaling.factor": (2.0, FLOAT)}, "default", 1),
        ({"scaling.type": ("linear", TEXT), "scaling.factor": (0.0, FLOAT)}, "default", 1),
    ],
)
def test_a_gguf_files_own_scaling(tmp_path, added, kind, factor):
    model = gguf_model("qwen3_moe")
    path = save_gguf(model, tmp_path / "m.gguf")
    rewrite(path, added={f"qwen3moe.rope.{key}": value for key, value in added.items()})
    llm = dali.load(path)
    assert llm.model.config.rope_parameters["rope_type"] == kind
    assert llm.ctx_size == factor * model.config.max_position_embeddings
