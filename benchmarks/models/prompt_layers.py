"""Prompts with each decoder layer in one native call, and with its parts between transformers' own code, in turns.

    python benchmarks/models/prompt_layers.py FOLDER [--gguf A.gguf B.gguf] [--rounds 9] [--only NAME]

In FOLDER random models are written unless they are there, and the stores of their experts. Tokens a second, the median over
rounds, of prompts that no sequence before has begun with; both ways give the same bits, which is checked first. Recurrent modules
and gated attention, which are native in all steps, are so both ways. What --only measures goes to a result of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as dali has it, which is imported after torch here
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import torch

import dali
import report
from dali.engine.request import Request
from dali.engine.sampling import SamplingParams
from dali.engine.sequence import Sequence
from dali.fused.attention import DecodingAttention
from dali.fused.layer import DecodingLayer
from dali.llm import LLM
from random_moe import build

PROMPTS = (128, 512, 2048)
MODELS = (
    ("qwen3-moe", "w8"),
    ("qwen3-moe", "w4"),
    ("gpt-oss", "mxfp4"),
    ("qwen3.5-moe", "w8"),
    ("qwen3.5-moe", "w4"),
)


@contextmanager
def part_by_part(llm: LLM) -> Iterator[None]:
    """The layers and attention modules as transformers wrote them."""
    fused = [module for module in llm.model.modules() if is_taken_apart(module.forward)]
    forwards = [module.forward for module in fused]
    for module in fused:
        module.forward = module.forward.plain
    try:
        yield
    finally:
        for module, forward in zip(fused, forwards, strict=True):
            module.forward = forward


def is_taken_apart(forward: Any) -> bool:
    if isinstance(forward, DecodingAttention):
        return not getattr(forward.native, "gated", False)
    return isinstance(forward, DecodingLayer)


def sequence_of(llm: LLM, tokens: int, seed: int) -> Sequence:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, llm.model.config.vocab_size, (tokens,), generator=generator).tolist()
    return Sequence(Request(tuple(ids), tokens + 1, SamplingParams(temperature=0, ignore_eos=True)))


def run(llm: LLM, tokens: int, seed: int) -> float:
    """Tokens a second."""
    sequence = sequence_of(llm, tokens, seed)
    begin = time.perf_counter()
    llm.loop.complete([sequence], fresh=True)
    return tokens / (time.perf_counter() - begin)


def check(llm: LLM) -> None:
    """Exit where both ways do not give the same bits."""
    natively = torch.cat(list(llm.engine.score(sequence_of(llm, 300, 0))))
    with part_by_part(llm):
        plainly = torch.cat(list(llm.engine.score(sequence_of(llm, 300, 0))))
    if not torch.equal(natively, plainly):
        sys.exit(f"{llm.loaded.name}: the two ways differ.")


def compare(llm: LLM, name: str, rounds: int) -> Iterator[dict[str, Any]]:
    check(llm)
    for tokens in PROMPTS:
        native, parts = [], []
        for seed in range(rounds + 1):
            native.append(run(llm, tokens, seed))
            with part_by_part(llm):
                parts.append(run(llm, tokens, seed))
        ratios = [one / other for one, other in zip(native[1:], parts[1:], strict=True)]
        yield {
            "model": name,
            "prompt": tokens,
            "parts, tokens/s": round(statistics.median(parts[1:])),
            "native, tokens/s": round(statistics.median(native[1:])),
            "ratio": round(statistics.median(ratios), 3),
            "least": round(min(ratios), 3),
            "most": round(max(ratios), 3),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gguf", type=Path, nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", help="random models of this name alone")
    settings = parser.parse_args()
    settings.folder.mkdir(exist_ok=True, parents=True)
    os.environ["DALI_CACHE_DIR"] = str(settings.folder / "cache")
    rows: list[dict[str, Any]] = []
    for path in settings.gguf:
        rows += compare(dali.load(path), path.stem, settings.rounds)
    for name, quant in MODELS:
        if settings.only not in (None, name):
            continue
        build(settings.folder, name)
        rows += compare(dali.load(settings.folder / name, quant=quant), f"{name} {quant}", settings.rounds)
    report.table(rows)
    report.write("_".join(filter(None, ("prompt_layers", settings.only))), rows)


if __name__ == "__main__":
    main()
