"""What the lossy parts of published systems cost in perplexity.

Teacher-forced: each of --sequences pieces of texts/perplexity.txt gives --prompt tokens as a prompt and the next --tokens one a
step, as an answer is generated: only there these parts act (but for experts of few bits, which are so everywhere). Sequences run
one after another (batch 1) or side by side, on a simulated accelerator that holds a quarter of each layer's experts. With its
lossy parts off a system computes what any other does, bit for bit (tests/systems/test_live.py), so one run stands for all of
them. Cost: exp of the mean difference of a token's loss, on against off; standard error: of that mean, in per cent.

    python benchmarks/policies/lossy_cost.py [--models dali-tiny smollm2-moe] [--batches 1 8] [--sequences 8 32] [--tokens 128]
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import dali
import report
from dali import systems
from dali.llm import LLM
from dali.policies.once.vram import residents

TEXT = Path(__file__).parents[1] / "texts" / "perplexity.txt"
DEVICE = "sim:paper"
SHARE = 4  # one expert in so many is resident
NAMES = [
    name
    for base in systems.names(lossy=True)
    for name in (base, *(f"{base}:{variant}" for variant in systems.get(base).variant_parts))
]


class Forced:
    """A sampler that answers with the tokens it was given, and keeps what each costs in nats."""

    def __init__(self, tokens: list[int]) -> None:
        self._next = iter(tokens)
        self.losses: list[float] = []

    def sample(self, logits: Tensor, tokens: object = ()) -> int:
        token = next(self._next)
        self.losses.append(-float(logits.double().log_softmax(-1)[token]))
        return token


def losses(llm: LLM, pieces: list[list[int]], prompt: int, batch: int) -> Tensor:
    """Of every token after the first behind each piece's prompt: that one is the prompt's."""
    found: list[float] = []
    for begin in range(0, len(pieces), batch):
        forced = []
        for piece in pieces[begin : begin + batch]:
            sequence: Any = llm.sequence(piece[:prompt], max_tokens=len(piece) - prompt, ignore_eos=True)
            sequence.sampler = Forced(piece[prompt:])
            forced.append(sequence.sampler)
            llm.engine.forget()
            llm.engine.add(sequence)
        while llm.engine.step():
            pass
        for sampler in forced:
            assert len(sampler.losses) == len(pieces[0]) - prompt
            found += sampler.losses[1:]
    return torch.tensor(found, dtype=torch.float64)


def a_quarter(llm: LLM) -> int:
    """The least accelerator memory with a quarter of each layer's experts resident."""
    layers, experts = len(llm.loaded.pool.records), len(llm.loaded.pool.records[0])
    slots = next(
        slots for slots in range(layers * experts) if residents(slots, layers, experts) == experts // SHARE
    )
    return slots * llm.layout.record_bytes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["dali-tiny", "smollm2-moe"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--systems", nargs="+", default=NAMES)
    parser.add_argument("--quant", default="w8")
    parser.add_argument("--sequences", nargs="+", type=int, default=[8, 32], help="for each of the batches")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    rows = []
    length = options.prompt + 1 + options.tokens
    for model in options.models:
        plain = dali.load(model, quant=options.quant)
        tokens, vram = plain.encode(TEXT.read_text()), a_quarter(plain)
        for batch, sequences in zip(options.batches, options.sequences, strict=True):
            pieces = [tokens[i * length : (i + 1) * length] for i in range(sequences)]
            assert len(pieces[-1]) == length, "the text is too short"
            given = {"quant": options.quant, "device": DEVICE, "vram": vram, "parallel": batch}
            off = losses(dali.load(model, **given), pieces, options.prompt, batch)
            for name in options.systems:
                llm = dali.load(model, **given, policy=name, lossy=True)
                rows.append(row(llm, batch, off, losses(llm, pieces, options.prompt, batch)))
                report.table(rows[-1:])
            report.write("lossy_cost", rows, device=DEVICE, resident=f"1/{SHARE} of each layer's experts")
    report.table(rows)


def row(llm: LLM, batch: int, off: Tensor, on: Tensor) -> dict[str, Any]:
    difference, lossy = on - off, llm.stats()["lossy"]
    ratio = math.exp(float(difference.mean()))
    changed = {name: lossy[name] / lossy["pairs"] for name in lossy if name not in ("parts", "pairs")}
    return {
        "model": llm.name,
        "experts": llm.format_name,
        "batch": batch,
        "system": llm.stats()["policy"],
        "lossy": ", ".join(lossy["parts"]),
        "tokens": len(on),
        "perplexity_off": round(math.exp(float(off.mean())), 4),
        "perplexity_on": round(math.exp(float(on.mean())), 4),
        "cost_percent": round(100 * (ratio - 1), 2),
        "standard_error": round(100 * ratio * float(difference.std()) / math.sqrt(len(on)), 2),
        "pairs_changed_percent": {name: round(100 * share, 1) for name, share in changed.items() if share},
    }


if __name__ == "__main__":
    main()
