"""Table 7 of the paper (DALI, arXiv 2602.03495), memory of the accelerator by batch, added up from sizes. Nothing is measured.

Resident experts and the runtime's scratch slots in w4, everything else of the model in bfloat16, keys and values of 128 tokens a
sequence (the paper's prompt and answer) in bfloat16, logits in float32; activations are left out. HybriMoE and DALI take the same
here, as both keep the same residents and scratch slots. The paper names neither the cache ratio nor the format of anything.

    python benchmarks/paper/memory.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.replay.shapes import SHAPES
from dali.replay.timeline import SCRATCH

TOKENS = 128  # of a sequence
BATCHES = (8, 16, 32, 64, 128)


class Sizes(NamedTuple):
    """From the model's config.json. `keys`: width of the keys of a token and layer, which is that of its values, too."""

    layers: int
    experts: int
    keys: int
    vocabulary: int


MODELS = {"mixtral-8x7b": Sizes(32, 8, 8 * 128, 32_000), "qwen3-30b-a3b": Sizes(48, 128, 4 * 128, 151_936)}
PAPER = {  # HybriMoE, DALI in GB
    "mixtral-8x7b": ((13.4, 12.6), (13.7, 12.8), (14.1, 13.0), (15.3, 13.6), (17.8, 15.1)),
    "qwen3-30b-a3b": ((4.79, 4.79), (5.02, 4.98), (5.35, 5.28), (6.16, 5.85), (7.42, 7.02)),
}


def needed(name: str, ratio: float, batch: int) -> int:
    """Bytes."""
    shape, sizes = SHAPES[name], MODELS[name]
    experts = shape.expert_bytes * (round(ratio * sizes.experts) * sizes.layers + SCRATCH)
    rest = shape.dense_bytes * sizes.layers + 2 * sizes.vocabulary * shape.hidden  # and the embeddings
    kept = 2 * 2 * sizes.keys * sizes.layers * TOKENS * batch
    return experts + rest + kept + 4 * sizes.vocabulary * batch


def main() -> None:
    rows: list[dict[str, Any]] = []
    for name, published in PAPER.items():
        for batch, (hybrimoe, dali) in zip(BATCHES, published, strict=True):
            here = {
                f"here_{ratio:.0%}_gb".replace("%", "_percent"): round(needed(name, ratio, batch) / 1e9, 2)
                for ratio in (0.25, 0.5)
            }
            rows.append(
                {"shape": name, "batch": batch, **here, "paper_hybrimoe_gb": hybrimoe, "paper_dali_gb": dali}
            )
    report.table(rows)
    report.write("paper_memory", rows, calculated=True)


if __name__ == "__main__":
    main()
