"""Every family: dali's logits against transformers' eager experts, in each way a step can be cut."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import DynamicCache

import dali
from dali.engine.sequence import Sequence
from dali.hooks.seam import describe, experts_modules
from dali.kernels import native
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import get_format
from dali.llm import LLM
from families import FAMILIES, random_model, save_model

LENGTHS = (21, 13, 4)  # across phimoe's longrope limit (16) and every sliding window
DECODE = 5


class Forced:
    """Stands in for a sampler: keeps the logits it is shown and answers with given tokens."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = iter(tokens)
        self.logits: list[torch.Tensor] = []

    def sample(self, logits: torch.Tensor, tokens: object = ()) -> int:
        self.logits.append(logits.clone())
        return next(self.tokens)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, 97, (length + DECODE,), generator=generator).tolist() for length in LENGTHS]


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


def expected_logits(model, tokens: list[int], prompt_tokens: int) -> torch.Tensor:
    """Logits of the last prompt token and each decoded one, as transformers computes them with its cache: [DECODE, vocab].

    The cache is begun anew where the rotary embedding changes its frequencies, as transformers' `generate` does."""
    # transformers 5.24 renamed the argument, and warns of the old name.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    limit = getattr(model.config, "original_max_position_embeddings", None)
    rows, begin = [], 0
    for end in range(prompt_tokens, len(tokens)):
        if begin == 0 or end - 1 == limit:
            begin, cache = 0, {name: DynamicCache(config=model.config)}
        with torch.inference_mode():
            rows.append(model(torch.tensor([tokens[begin:end]]), **cache).logits[0, -1])
        begin = end
    return torch.stack(rows)


def dali_logits(llm: LLM, prompts: list[list[int]], step_tokens: int) -> list[torch.Tensor]:
    llm.engine.scheduler.step_tokens = step_tokens
    llm.engine._last = None
    sequences: list[Sequence] = []
    for tokens in prompts:
        sequence = llm.sequence(tokens[:-DECODE], max_tokens=DECODE, ignore_eos=True)
        sequence.sampler = Forced(tokens[-DECODE:])  # type: ignore[assignment]
        llm.engine.add(sequence)
        sequences.append(sequence)
    while llm.engine.step():
        pass
    return [torch.stack(sequence.sampler.logits) for sequence in sequences]  # type: ignore[attr-defined]


def quantize_experts(model, format: str) -> None:
    """Replace every expert's weights by what `format` keeps of them."""
    with torch.no_grad():
        for name, module in experts_modules(model).items():
            info = describe(name, module)
            layout = ExpertLayout(info.shape, get_format(format))
            record = torch.empty(layout.record_bytes, dtype=torch.uint8)
            first, down = (
                module.gate_up_proj,
                module.down_proj,
            )
            for expert in range(info.experts):
                biases = (
                    [module.gate_up_proj_bias[expert], module.down_proj_bias[expert]]
                    if info.shape.biased
                    else []
                )
                layout.pack(info.canonical(first[expert], down[expert], *biases), record)
                weights = layout.unpack(record)
                if info.concatenated:
                    joined = torch.cat([weights.gate, weights.up])
                else:
                    joined = torch.stack([weights.gate, weights.up], dim=1).flatten(0, 1)
                first[expert] = joined.T if info.transposed else joined
                down[expert] = weights.down.T if info.transposed else weights.down


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
    expected = [expected_logits(model, tokens, len(tokens) - DECODE) for tokens in prompts]
    scale = expected[0].abs().max()
    for step_tokens in (512, 6):  # whole prompts; chunks that mix with other sequences' decoding
        for found, wanted in zip(dali_logits(llm, prompts, step_tokens), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=float(scale) * 2e-5)
    for tokens, wanted in zip(prompts, expected, strict=True):
        torch.testing.assert_close(
            dali_logits(llm, [tokens], 512)[0], wanted, rtol=0, atol=float(scale) * 2e-5
        )
