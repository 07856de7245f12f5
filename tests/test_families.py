"""Every family: dali's logits against transformers' eager experts, in each way a step can be cut."""

from __future__ import annotations

import pytest

import dali
from dali.kernels import native
from families import FAMILIES, random_model, save_model
from logits import expected_logits, largest_difference, quantize_experts, random_prompts

LENGTHS = (21, 13, 4)  # across phimoe's longrope limit (16) and every sliding window


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return random_prompts(LENGTHS)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def saved(family, tmp_path_factory):
    model = random_model(family)
    return model, save_model(model, tmp_path_factory.mktemp(family))


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


# Quantized formats by torch's kernels: exact arithmetic. The compiled ones round activations (benchmarks/models/perplexity.py).
@pytest.mark.parametrize(
    ("format", "kernels"), [("f32", ""), ("f32", "torch"), ("w8", "torch"), ("w4", "torch")]
)
def test_logits_equal_transformers(saved, prompts, format, kernels, monkeypatch):
    monkeypatch.setenv(native.VARIABLE, kernels)
    model, directory = saved
    llm = dali.load(directory, quant=format)
    if format != "f32":
        model = random_model(model.config.model_type)
        quantize_experts(model, format)
    expected = [expected_logits(model, tokens) for tokens in prompts]
    assert largest_difference(llm, prompts, expected) < 2e-5
