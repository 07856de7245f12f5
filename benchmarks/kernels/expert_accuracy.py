"""What the compiled expert kernels' arithmetic costs: each format and instruction set against float64 on the dequantized weights.

Each layer's gate inputs, routed experts and their weights are those of the model itself on a window of texts/perplexity.txt.
`median` and `worst` are over layers, the relative L2 error of a layer's output over all tokens; `format` is, for scale, what
the format itself does to that output: exact arithmetic on the dequantized weights against float64 on the model's own, median.
Quantized formats round activations to int8 in groups of 32.

    python benchmarks/kernels/expert_accuracy.py [--models dali-tiny smollm2-moe] [--tokens 256]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import dali
import report
from dali.hooks.seam import dali_layer, experts_modules, set_dali_layer
from dali.kernels import native
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import FORMATS
from exact import ExactExperts

TEXT = Path(__file__).parents[1] / "texts" / "perplexity.txt"
Call = tuple[Tensor, Tensor, Tensor]


def recorded(llm: dali.LLM, tokens: int) -> list[Call]:
    """What each experts module is called with on the first `tokens` of the text: hidden, ids, weights."""
    calls: list[Call] = []

    def recording(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*given: Tensor) -> Tensor:
            calls.append(tuple(part.clone() for part in given))
            return layer(*given)

        return call

    modules = experts_modules(llm.model).values()
    for module in modules:
        layer = dali_layer(module)
        assert layer is not None
        set_dali_layer(module, recording(layer))
    sequence = llm.sequence(llm.encode(TEXT.read_text())[:tokens])
    llm.engine.scheduler.step_tokens = tokens
    list(llm.engine.score(sequence))
    assert len(calls) == len(modules)
    return calls


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def rows(llm: dali.LLM, tokens: int) -> list[dict[str, Any]]:
    """The table's rows of one model, loaded as f32."""
    calls = [(hidden.double(), ids, weights) for hidden, ids, weights in recorded(llm, tokens)]
    own = [
        ExactExperts(llm.layout, originals, torch.float64)(*call)
        for call, originals in zip(calls, llm.loaded.pool.records, strict=True)
    ]
    found = []
    for name, format in FORMATS.items():
        layout = ExpertLayout(llm.layout.shape, format)
        rounding: list[float] = []
        errors: dict[str, list[float]] = {variant: [] for variant in native.variants()}
        for call, originals, unrounded in zip(calls, llm.loaded.pool.records, own, strict=True):
            records = [torch.empty(layout.record_bytes, dtype=torch.uint8) for _ in originals]
            for record, original in zip(records, originals, strict=True):
                layout.pack(llm.layout.unpack(original), record)
            exact = ExactExperts(layout, records, torch.float64)(*call)
            rounding.append(relative(exact, unrounded))
            experts = native.ExpertRecords(layout, records)
            for variant, layers in errors.items():
                native.use(variant)
                out, _ = experts.compute(call[0].float(), *call[1:])
                layers.append(relative(out, exact))
        for variant, layers in errors.items():
            found.append(
                {
                    "model": llm.name,
                    "format": name,
                    "variant": variant,
                    "tokens": len(calls[0][0]),
                    "median_percent": percent(statistics.median(layers)),
                    "worst_percent": percent(max(layers)),
                    "worst_layer": layers.index(max(layers)),
                    "format_percent": percent(statistics.median(rounding)),
                }
            )
    return found


def percent(share: float) -> float:
    return float(f"{100 * share:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["dali-tiny", "smollm2-moe"])
    parser.add_argument("--tokens", type=int, default=256)
    options = parser.parse_args()
    os.environ[native.VARIABLE] = "torch"  # the gate inputs are of exact arithmetic
    table = [
        row
        for model in options.models
        for row in rows(dali.load(model, quant="f32", dtype="float32"), options.tokens)
    ]
    report.table(table)
    report.write("expert_accuracy", table)


if __name__ == "__main__":
    main()
