"""Perplexity of each packed format on a fixed text: what a format costs in quality.

Teacher-forced over the first --tokens tokens of texts/perplexity.txt, in windows of the model's context (at most 1,024),
dense weights in float32 so that only the experts differ. `int8` rows use the packed kernels' own arithmetic, `native` ones are
the compiled kernels as `dali run` uses them: dense weights packed to w8, too.

    python benchmarks/perplexity.py [--models dali-tiny smollm2-moe] [--tokens 4096]
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import torch

import dali
import report
from dali.engine.seam import experts_modules
from dali.kernels import native

TEXT = Path(__file__).parent / "texts" / "perplexity.txt"
VARIANTS = [
    ("f32", "exact"),
    ("bf16", "exact"),
    ("w8", "exact"),
    ("w8", "int8"),
    ("w8", "native"),
    ("w4", "exact"),
    ("w4", "int8"),
    ("w4", "native"),
]


def perplexity(llm: dali.LLM, tokens: list[int]) -> float:
    """exp of the mean negative log-likelihood of each token given its window's earlier ones."""
    window = min(llm.ctx_size - 1, 1024)
    total, count = 0.0, 0
    for begin in range(0, len(tokens) - 1, window):
        piece = tokens[begin : begin + window + 1]
        logits = torch.cat(list(llm.engine.score(llm.sequence(piece[:-1]))))
        loss = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(piece[1:]), reduction="sum")
        total, count = total + float(loss), count + len(piece) - 1
    return math.exp(total / count)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["dali-tiny", "smollm2-moe"])
    parser.add_argument("--tokens", type=int, default=4096)
    options = parser.parse_args()
    rows = []
    for name in options.models:
        exact: dict[str, float] = {}
        for quant, arithmetic in VARIANTS:
            os.environ[native.VARIABLE] = "" if arithmetic == "native" else "torch"
            llm = dali.load(name, quant=quant, dtype="float32")
            for module in experts_modules(llm.model).values():
                module.__dict__["dali_layer"].arithmetic = None if arithmetic == "native" else arithmetic
            tokens = llm.encode(TEXT.read_text())[: options.tokens]
            value = perplexity(llm, tokens)
            if arithmetic == "exact":
                exact[quant] = value
            rows.append(
                {
                    "model": name,
                    "format": quant,
                    "arithmetic": arithmetic,
                    "tokens": len(tokens),
                    "perplexity": round(value, 4),
                    "vs_f32_percent": round(100 * (value / exact["f32"] - 1), 3),
                    "vs_exact_percent": round(100 * (value / exact[quant] - 1), 3),
                }
            )
    report.table(rows)
    report.write("perplexity", rows)


if __name__ == "__main__":
    main()
