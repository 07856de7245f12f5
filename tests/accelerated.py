"""A tiny model on a simulated accelerator whose times make every policy mix the CPU, residents and copies."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

import dali
from dali.devices import SimDevice
from dali.hardware import profile
from dali.llm import LLM
from dali.offload import build
from dali.options import LoadOptions
from dali.progress import silent

LAYERS = {"qwen3_moe": 3, "deepseek_v2": 2, "gpt_oss": 3}  # that have experts
PROMPTS = [[5, 9, 17, 33, 21, 8, 40, 3, 77, 61, 12], [88, 4, 50], [7, 23, 23, 64, 31, 90, 14]]


class Turns:
    """In a Doubt's place: which decoding steps are left to the CPU, over and over; `told` has the seconds of each, and those
    modelled."""

    def __init__(self, *pattern: bool) -> None:
        self._turns = itertools.cycle(pattern)
        self.told: list[tuple[float, float]] = []

    @property
    def on_cpu(self) -> bool:
        return next(self._turns)

    def step(self, seconds: float, modelled: float) -> bool:
        self.told.append((seconds, modelled))
        return False


def slow_machine(directory: Path) -> Path:
    """A profile on which even tiny experts are worth a copy: a slow CPU, a link without latency."""
    figures = json.loads(profile.load("paper").to_json())
    figures["name"] = "slow"
    for name, share in (
        ("cpu_bandwidth", 1.5e-3),
        ("cpu_rate", 1.5e-3),
        ("link_bandwidth", 1e-2),
        ("gpu_memory", 1.0),
    ):
        figures["figures"][name]["value"] *= share
    for name in ("link_latency", "launch", "sync"):
        figures["figures"][name]["value"] = 1e-7
    path = directory / "slow.json"
    path.write_text(json.dumps(figures))
    return path


def calibration_text(path: Path, words: int) -> Path:
    """A text in the words of families.save_model's tokenizer, a token each: no word has a special token's, 0 or 2, inside."""
    known = [str(token) for token in range(3, 97) if not {"0", "2"} & set(str(token))]
    path.write_text(" ".join(Random(0).choices(known, k=words)))
    return path


def accelerate(
    llm: LLM,
    options: LoadOptions,
    device: Callable[[], SimDevice] | None = None,
    notify: Callable[[str], None] = lambda message: None,
) -> LLM:
    """Put a model that was loaded for the CPU on an accelerator, `device` in place of the one that `options` names."""
    made = device() if device else None
    llm.accelerate(build.accelerate(llm.loaded, llm.engine, options, silent, notify, made))
    return llm


class Watched:
    """A sampler that keeps the logits it is shown."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.logits: list[Tensor] = []

    def sample(
        self, logits: Tensor, tokens: Sequence[int] = (), highest: object = None, allowed: object = None
    ) -> int:
        self.logits.append(logits.clone())
        return int(self.sampler.sample(logits, tokens))


def answers(llm: LLM, step_tokens: int = 512, tokens: int = 6) -> list[tuple[list[int], Tensor]]:
    """Greedy tokens and their logits [tokens, vocabulary] of each prompt, all run at once."""
    llm.engine.scheduler.step_tokens = step_tokens
    llm.engine.forget()
    sequences = [
        llm.sequence(prompt, temperature=0, max_tokens=tokens, ignore_eos=True) for prompt in PROMPTS
    ]
    for sequence in sequences:
        sequence.sampler = Watched(sequence.sampler)  # type: ignore[assignment]
        llm.engine.add(sequence)
    while llm.engine.step():
        pass
    assert all(sequence.finish_reason == "length" for sequence in sequences)
    return [(sequence.generated, torch.stack(sequence.sampler.logits)) for sequence in sequences]  # type: ignore[attr-defined]


def same(ours: list[tuple[list[int], Tensor]], theirs: list[tuple[list[int], Tensor]]) -> bool:
    """Tokens equal, logits equal bit for bit."""
    return all(
        tokens == other and torch.equal(logits, others)
        for (tokens, logits), (other, others) in zip(ours, theirs, strict=True)
    )


def load(directory: Path, **options: Any) -> LLM:
    return dali.load(directory, **({"quant": "w8"} | options))
