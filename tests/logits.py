"""Logits of a model as transformers computes them, and as dali does, each in every way a step can be cut."""

from __future__ import annotations

import inspect
from collections.abc import Sequence as Many
from typing import Any

import torch

from dali.engine.sequence import Sequence
from dali.hooks.seam import describe, experts_modules
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import get_format
from dali.llm import LLM

DECODE = 5  # tokens at the end of a prompt that are decoded, one a step


class Forced:
    """Stands in for a sampler: keeps the logits it is shown and answers with given tokens."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = iter(tokens)
        self.logits: list[torch.Tensor] = []

    def sample(
        self, logits: torch.Tensor, tokens: object = (), highest: object = None, allowed: object = None
    ) -> int:
        self.logits.append(logits.clone())
        return next(self.tokens)


def random_prompts(lengths: Many[int], vocabulary: int = 97) -> list[list[int]]:
    """Prompts of so many tokens, and DECODE more."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, vocabulary, (n + DECODE,), generator=generator).tolist() for n in lengths]


def expected_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    """Logits of the last prompt token and each decoded one, as transformers computes them with its cache: [DECODE, vocab].

    The cache is begun anew where the rotary embedding changes its frequencies, as transformers' `generate` does."""
    # transformers 5.24 renamed the argument, and warns of the old name.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    limit = getattr(model.config, "original_max_position_embeddings", None)
    rows, begin = [], 0
    cache: dict[str, Any] = {}
    for end in range(len(tokens) - DECODE, len(tokens)):
        if end - 1 == limit:
            begin, cache = 0, {}
        with torch.inference_mode():
            out = model(torch.tensor([tokens[begin:end]]), use_cache=True, **cache)
        rows.append(out.logits[0, -1])
        begin, cache = end, {name: out[name]}
    return torch.stack(rows)


@torch.inference_mode()
def whole_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    """Logits after each token, as transformers computes them of all at once, with no cache and in float32: [tokens, vocab]."""
    logits: torch.Tensor = model.float()(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


def alike(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The least cosine of all but the worst quarter of rows. What rounds activations to 8 bits sends a token to other experts now
    and then; what forgets earlier tokens, or has them at other places, spoils most rows."""
    return float(torch.cosine_similarity(found.float(), expected.float()).quantile(0.25))


@torch.inference_mode()
def scored(llm: LLM, tokens: list[int], step_tokens: int) -> torch.Tensor:
    """Logits after each token as dali computes them, in chunks of so many: [tokens, vocab]."""
    llm.engine.scheduler.step_tokens = step_tokens
    return torch.cat([rows.clone() for rows in llm.engine.score(llm.sequence(tokens))])


def dali_logits(llm: LLM, prompts: list[list[int]], step_tokens: int) -> list[torch.Tensor]:
    """The same of prompts that run side by side, in steps of at most `step_tokens`."""
    llm.engine.scheduler.step_tokens = step_tokens
    llm.engine.forget()
    sequences: list[Sequence] = []
    for tokens in prompts:
        sequence = llm.sequence(tokens[:-DECODE], max_tokens=DECODE, ignore_eos=True)
        sequence.sampler = Forced(tokens[-DECODE:])  # type: ignore[assignment]
        llm.engine.add(sequence)
        sequences.append(sequence)
    while llm.engine.step():
        pass
    return [torch.stack(sequence.sampler.logits) for sequence in sequences]  # type: ignore[attr-defined]


def largest_difference(llm: LLM, prompts: list[list[int]], expected: list[torch.Tensor]) -> float:
    """How far dali's logits are from the expected ones at most, relative to their scale: of whole prompts side by side, in chunks
    that mix with other sequences' decoding, and of each by itself."""
    scale = max(float(wanted.abs().max()) for wanted in expected)
    runs = [(prompts, expected, 512), (prompts, expected, 6)]
    runs += [([prompt], [wanted], 512) for prompt, wanted in zip(prompts, expected, strict=True)]
    return max(
        float((found - wanted).abs().max()) / scale
        for tokens, logits, step_tokens in runs
        for found, wanted in zip(dali_logits(llm, tokens, step_tokens), logits, strict=True)
    )


def quantize_experts(model: Any, format: str) -> None:
    """Replace every expert's weights by what `format` keeps of them."""
    with torch.no_grad():
        for name, module in experts_modules(model).items():
            info = describe(name, module)
            layout = ExpertLayout(info.shape, get_format(format))
            record = torch.empty(layout.record_bytes, dtype=torch.uint8)
            parameters = [getattr(module, parameter) for parameter in info.parameter_names]
            for expert in range(info.experts):
                layout.pack(info.canonical(*(parameter[expert] for parameter in parameters)), record)
                weights = layout.unpack(record)
                if not info.shape.gated:
                    joined = weights.up
                elif info.concatenated:
                    joined = torch.cat([weights.gate, weights.up])
                else:
                    joined = torch.stack([weights.gate, weights.up], dim=1).flatten(0, 1)
                parameters[0][expert] = joined.T if info.transposed else joined
                parameters[1][expert] = weights.down.T if info.transposed else weights.down
