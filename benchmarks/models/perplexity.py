"""What formats and the compiled kernels cost in quality: perplexity on two fixed texts, `native` against exact arithmetic.

`native` is what `dali run` computes: experts packed in `format`, beside quantized ones dense linears in w8, both by the compiled
kernels. `exact` is the same weights, dequantized, in float32 arithmetic. Teacher-forced over all of texts/perplexity.txt and
the first --tokens of the calibration text, in windows of the model's context (at most 1,024); everything else is float32.

`native_vs_exact_percent` is how much larger the native perplexity is; beside it is its standard error, from the tokens'
differences in log-likelihood (tokens taken as independent). `exact_vs_f32_percent` is what the format costs.

    python benchmarks/models/perplexity.py [--models dali-tiny smollm2-moe] [--formats f32 w8 w4 mxfp4 q4k bf16] [--tokens 10000]
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import dali
import report
from dali.kernels import native
from dali.kernels.formats import get_format
from exact import make_exact

BENCHMARKS = Path(__file__).parents[1]
TEXTS = {
    "perplexity": BENCHMARKS / "texts" / "perplexity.txt",
    "calibration": BENCHMARKS.parent / "src" / "dali" / "texts" / "calibration.txt",
}


def losses(llm: dali.LLM, tokens: list[int]) -> Tensor:
    """Negative log-likelihood of each token given its window's earlier ones: float64 [tokens - windows]."""
    window = min(llm.ctx_size - 1, 1024)
    found = []
    for begin in range(0, len(tokens) - 1, window):
        piece = tokens[begin : begin + window + 1]
        after = begin + 1
        for logits in llm.engine.score(llm.sequence(piece[:-1])):
            targets = torch.tensor(tokens[after : after + len(logits)])
            found.append(
                torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").double()
            )
            after += len(logits)
    return torch.cat(found)


def excess(loss: Tensor, base: Tensor) -> tuple[float, float]:
    """By how many percent the perplexity of `loss` exceeds that of `base`, of the same tokens, and its standard error."""
    difference = loss - base
    ratio = math.exp(float(difference.mean()))
    return 100 * (ratio - 1), 100 * ratio * float(difference.std()) / math.sqrt(len(difference))


def measure(model: str, format: str, exact: bool, tokens: int) -> dict[str, Tensor]:
    """Each text's losses."""
    os.environ[native.VARIABLE] = "torch" if exact else ""
    llm = dali.load(model, quant=format, dtype="float32")
    if exact:
        make_exact(llm, get_format("w8") if llm.layout.format.quantized else None)
    return {
        name: losses(llm, llm.encode(path.read_text())[: None if name == "perplexity" else tokens])
        for name, path in TEXTS.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["dali-tiny", "smollm2-moe"])
    parser.add_argument("--formats", nargs="+", default=["f32", "w8", "w4", "mxfp4", "q4k", "bf16"])
    parser.add_argument("--tokens", type=int, default=10000)
    options = parser.parse_args()
    rows = []
    for model in options.models:
        plain = measure(model, "f32", True, options.tokens)
        for format in options.formats:
            exact = plain if format == "f32" else measure(model, format, True, options.tokens)
            compiled = measure(model, format, False, options.tokens)
            for text in (*TEXTS, "both"):
                of = [
                    torch.cat(list(part.values())) if text == "both" else part[text]
                    for part in (plain, exact, compiled)
                ]
                cost, _ = excess(of[1], of[0])
                difference, error = excess(of[2], of[1])
                rows.append(
                    {
                        "model": model,
                        "format": format,
                        "text": text,
                        "tokens": len(of[0]),
                        "exact": round(math.exp(float(of[1].mean())), 4),
                        "native": round(math.exp(float(of[2].mean())), 4),
                        "exact_vs_f32_percent": round(cost, 3) + 0.0,
                        "native_vs_exact_percent": round(difference, 3) + 0.0,
                        "standard_error_percent": round(error, 3),
                    }
                )
            report.write("perplexity", rows)  # what an interruption leaves
    report.table(rows)


if __name__ == "__main__":
    main()
