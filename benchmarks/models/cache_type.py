"""What keys and values in 8 bits cost in quality: perplexity with `cache_type="q8"` beside the model's own type.

The texts and windows of `benchmarks/models/perplexity.py`; experts in `w8`, everything else in `--dtype`. `q8_percent` is
how much larger the perplexity is; beside it is its standard error, from the tokens' differences in log-likelihood (tokens
taken as independent). `bytes` are of one token's keys and values in all layers.

    python benchmarks/models/cache_type.py [--models dali-tiny smollm2-moe] [--dtype float32] [--tokens 10000]
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).parent))

import dali
import report
from dali.offload.vram import state_size
from perplexity import TEXTS, excess, losses


def measure(model: str, dtype: str, cache_type: str, tokens: int) -> tuple[dict[str, Tensor], int]:
    """Each text's losses, and bytes a token."""
    with dali.load(model, quant="w8", dtype=dtype, cache_type=cache_type) as llm:
        found = {
            name: losses(llm, llm.encode(path.read_text())[: None if name == "perplexity" else tokens])
            for name, path in TEXTS.items()
        }
        return found, sum(token_bytes for token_bytes, _ in state_size(llm.engine).layers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["dali-tiny", "smollm2-moe"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=10000)
    options = parser.parse_args()
    rows = []
    for model in options.models:
        plain, of_plain = measure(model, options.dtype, "model", options.tokens)
        kept, of_kept = measure(model, options.dtype, "q8", options.tokens)
        for text in (*TEXTS, "both"):
            of = [torch.cat(list(part.values())) if text == "both" else part[text] for part in (plain, kept)]
            cost, error = excess(of[1], of[0])
            rows.append(
                {
                    "model": Path(model).name,
                    "dtype": options.dtype,
                    "text": text,
                    "tokens": len(of[0]),
                    "model_type": round(math.exp(float(of[0].mean())), 4),
                    "q8": round(math.exp(float(of[1].mean())), 4),
                    "q8_percent": round(cost, 3) + 0.0,
                    "standard_error_percent": round(error, 3),
                    "bytes": of_plain,
                    "q8_bytes": of_kept,
                }
            )
        report.write("cache_type", rows)  # what an interruption leaves
    report.table(rows)


if __name__ == "__main__":
    main()
