"""A random model in Qwen3-30B-A3B's shape, in memory: dense weights of noise, experts that are copies of a few."""

from __future__ import annotations

import time
from collections.abc import Sequence as Many
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, Qwen3MoeForCausalLM

import dali
from dali import fused
from dali.engine.request import Request
from dali.engine.sampling import Sampler, SamplingParams
from dali.engine.sequence import Sequence
from dali.hooks import attention, seam
from dali.hooks.moe_layer import MoELayer
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import get_format
from dali.llm import LLM
from dali.loading.loaded import LoadedModel
from dali.store.arena import Arena
from dali.store.expert_pool import ExpertPool
from dali.telemetry import Telemetry
from kernels.packed import random_records
from result import CannotRun

DIFFERENT = 64  # experts
DEVIATION = 0.02  # of dense weights
CONTEXT = 512
NOISE, STRIDE = 2**22, 12347  # values that are drawn; between what the parameters begin with
GREEDY = SamplingParams(temperature=0, ignore_eos=True)


def random_llm(config: Any, format: str = "w4") -> LLM:
    """The model on the CPU, decoding in one native call. CannotRun where it does not."""
    torch.manual_seed(0)
    layers, experts = config.num_hidden_layers, config.num_experts
    shape = ExpertShape(config.hidden_size, config.moe_intermediate_size, Activation("silu"))
    layout = ExpertLayout(shape, get_format(format))
    few = random_records(layout, DIFFERENT)
    arena = Arena(layers * experts, layout.record_bytes)
    for index in range(layers * experts):
        arena[index].copy_(few[index % DIFFERENT])
    return llm_of(config, ExpertPool([layout] * layers, arena.by_layer(layers)))


def llm_of(config: Any, pool: ExpertPool) -> LLM:
    """The same with the experts of `pool`."""
    model, telemetry = dense_part(config), Telemetry()
    seam.install(model, [MoELayer(index, pool, telemetry) for index in range(pool.layers)])
    tokenizer = AutoTokenizer.from_pretrained(Path(dali.__file__).parent / "models" / "dali-tiny")
    top_k = config.num_experts_per_tok
    llm = LLM(LoadedModel("random Qwen3-MoE", "random", model, tokenizer, pool, telemetry, CONTEXT, top_k))
    llm.engine.decoder = fused.fuse(model, get_format("w8"))
    if llm.engine.decoder is None:
        raise CannotRun("dali's kernels for the CPU do not decode this model in one call here.")
    return llm


def dense_part(config: Any) -> Any:
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM._from_config(
            config, attn_implementation=attention.IMPLEMENTATION, dtype=torch.bfloat16
        )
    seam.strip_experts(model)
    return with_noise(model.to_empty(device="cpu"))


def with_noise(model: Any) -> Any:
    """A model whose parameters are noise, but its norms, which do nothing."""
    model.eval()
    noise, begin = (torch.randn(NOISE) * DEVIATION).to(model.device, torch.bfloat16).repeat(2), 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            flat, begin = parameter.view(-1), (begin + STRIDE) % NOISE  # no two layers' routers are the same
            for at in range(0, len(flat), NOISE):
                flat[at : at + NOISE] = noise[begin : begin + min(len(flat) - at, NOISE)]
            if "norm" in name:
                parameter.fill_(1.0)
    rotary = type(model.model.rotary_emb)(config=model.config)  # its tables, which are no parameters
    model.model.rotary_emb = rotary.to(model.device)
    return model


class Drawn(Sampler):
    """Looks for the likeliest token and takes a drawn one: a random model would say one over and over, with the same experts."""

    def __init__(self, params: SamplingParams, vocabulary: int, seed: int) -> None:
        super().__init__(params)
        self._vocabulary, self._random = vocabulary, Random(seed)

    def sample(self, logits: Tensor, tokens: Many[int] = (), highest: Any = None, allowed: Any = None) -> int:
        super().sample(logits, tokens, highest)
        return self._random.randrange(self._vocabulary)


def decode(llm: LLM, batch: int, tokens: int) -> list[float]:
    """Generate `tokens` tokens of `batch` sequences that begin with a token each: seconds of each step but the first quarter."""
    sequences = [Sequence(Request((index + 1,), tokens + 1, GREEDY)) for index in range(batch)]
    for index, sequence in enumerate(sequences):
        sequence.sampler = Drawn(GREEDY, llm.model.config.vocab_size, index)
    found = run(llm, sequences)
    return found[len(found) // 4 :]


def greedy(llm: LLM, prompt_tokens: int, tokens: int) -> list[int]:
    """The likeliest `tokens` tokens after a prompt of so many."""
    vocabulary = llm.model.config.vocab_size
    prompt = tuple(STRIDE * index % vocabulary for index in range(1, prompt_tokens + 1))
    sequence = Sequence(Request(prompt, prompt_tokens + tokens, GREEDY))
    run(llm, [sequence])
    return sequence.generated


def run(llm: LLM, sequences: list[Sequence]) -> list[float]:
    """Seconds of each step until all sequences have ended."""
    llm.engine.forget()
    for sequence in sequences:
        llm.engine.add(sequence)
    found = []
    while True:
        started = time.perf_counter()
        if not llm.engine.step():
            break
        found.append(time.perf_counter() - started)
    for sequence in sequences:
        if sequence.error is not None:
            raise sequence.error
    return found
