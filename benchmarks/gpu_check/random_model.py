"""A random model in Qwen3-30B-A3B's shape, in memory: dense weights of noise, experts that are copies of a few."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from one_layer import random_records
from torch import Tensor
from transformers import AutoTokenizer, Qwen3MoeForCausalLM

import dali
from dali.engine.request import Request
from dali.engine.sampling import SamplingParams
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

DIFFERENT = 64  # experts
DEVIATION = 0.02  # of dense weights
CONTEXT = 512


def random_llm(config: Any, format: str = "w4") -> LLM:
    """The model on the CPU, its experts in dali's layers."""
    torch.manual_seed(0)
    model = dense_part(config)
    layers, experts = config.num_hidden_layers, config.num_experts
    shape = ExpertShape(config.hidden_size, config.moe_intermediate_size, Activation("silu"))
    layout = ExpertLayout(shape, get_format(format))
    few = random_records(layout, DIFFERENT)
    arena = Arena(layers * experts, layout.record_bytes)
    for index in range(layers * experts):
        arena[index].copy_(few[index % DIFFERENT])
    telemetry, pool = Telemetry(), ExpertPool([layout] * layers, arena.by_layer(layers))
    seam.install(model, [MoELayer(index, pool, telemetry) for index in range(layers)])
    tokenizer = AutoTokenizer.from_pretrained(Path(dali.__file__).parent / "models" / "dali-tiny")
    top_k = config.num_experts_per_tok
    return LLM(LoadedModel("random Qwen3-MoE", "random", model, tokenizer, pool, telemetry, CONTEXT, top_k))


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
    noise = (torch.randn(2**22) * DEVIATION).to(model.device, torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            flat = parameter.view(-1)
            for at in range(0, len(flat), len(noise)):
                flat[at : at + len(noise)] = noise[: len(flat) - at]
            if "norm" in name:
                parameter.fill_(1.0)
    rotary = type(model.model.rotary_emb)(config=model.config)  # its tables, which are no parameters
    model.model.rotary_emb = rotary.to(model.device)
    return model


def decode(llm: LLM, batch: int, tokens: int) -> list[float]:
    """Generate `tokens` tokens of `batch` sequences that begin with a token each: seconds of each step but the first quarter."""
    llm.engine.forget()
    params = SamplingParams(temperature=0, ignore_eos=True)
    sequences = [Sequence(Request((index + 1,), tokens + 1, params)) for index in range(batch)]
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
    return found[len(found) // 4 :]


class Replay:
    """A layer whose routing is given, step for step, where a step has as many tokens as it was given for."""

    def __init__(self, layer: Callable[[Tensor, Tensor, Tensor], Tensor], ids: list[Tensor]) -> None:
        self._layer, self._ids, self._step = layer, ids, 0
        self.seconds = 0.0  # of the host in the layer, its waits included

    def __call__(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        started = time.perf_counter()
        if len(hidden) == len(self._ids[0]):
            ids = self._ids[self._step % len(self._ids)].to(ids.device)
            self._step += 1
        out = self._layer(hidden, ids, weights)
        self.seconds += time.perf_counter() - started
        return out
