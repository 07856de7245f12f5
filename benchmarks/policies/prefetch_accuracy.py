"""How well residual and ridge prefetching foresee a later MoE layer's routing, against the plain next gate, on both real models.

Calibrated as the runtime does it: on src/dali/texts/calibration.txt, which is scripture, country facts, made-up stories and
chat, arithmetic, and code. Tested on two sets of text, each cut into sequences of 128 tokens of which the last 64 count (as in
the paper, 64 tokens of prompt come first); they are teacher-forced, not generated.

- `other`: kinds of text that calibration has none of: a licence (LICENSE, the Apache License 2.0), and plays of everyday talk,
  recipes, instructions and notices (texts/dialogue.txt, texts/household.txt). The nearest that calibration comes to them is
  its short questions and answers and its stories.
- `kindred`: other books and other countries of the same two works (texts/perplexity.txt).

dali-tiny saw the works behind `kindred` in training, and of smollm2-moe's training nobody can say what it did not hold; what
is tested here is the predictors. They never saw either set.

For each layer that can be foreseen, and averaged over these layers, each with a 95 % bootstrap interval over sequences (over
batches for the busiest experts; the texts are given, so other texts may differ by more):

- `recall`: share of a token's top-k experts among the k predicted for it.
- `busiest1`, `2`, `4`: share of the 1, 2, 4 busiest experts of a batch found among the 4 predicted to be busiest. A batch is
  one token each of 8 sequences side by side. Experts that tie for the last place share it; the prediction's own ties go to the
  lower id, as in the runtime.
- `cosine`: similarity of the predictor's input to the gate input it stands for; ridge has none.

Blind guessing would reach k/experts in recall and 4/experts of the busiest (in the result's `chance`).

    python benchmarks/policies/prefetch_accuracy.py [--models dali-tiny smollm2-moe] [--sequences 80]
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import dali
import report
from dali.hooks import seam
from dali.offload.calibrate import load_predictor
from dali.progress import silent
from dali.runtime.predict import GateShift

BENCHMARKS = Path(__file__).parents[1]
TEXTS = {
    "other": [
        BENCHMARKS.parent / "LICENSE",
        BENCHMARKS / "texts" / "dialogue.txt",
        BENCHMARKS / "texts" / "household.txt",
    ],
    "kindred": [BENCHMARKS / "texts" / "perplexity.txt"],
}
PREDICTORS, DISTANCES = ("next_gate", "residual", "ridge"), (1, 2, 4)
PROMPT, MEASURED = 64, 64  # tokens of a sequence
BATCH, GUESSED, BUSIEST = 8, 4, (1, 2, 4)
RESAMPLES = 1000

# DALI, arXiv 2602.03495, at distance 1: Table 5 (accuracy of the prediction) and Table 8 (cosine similarity).
PAPER = [
    {"table": "5, accuracy", "model": "DeepSeek-V2-Lite", "next_gate": 0.726, "residual": 0.795},
    {"table": "5, accuracy", "model": "Qwen3-30B-A3B", "next_gate": 0.776, "residual": 0.933},
    {"table": "8, cosine", "model": "Qwen3-30B-A3B", "next_gate": 0.79, "residual": 0.93},
    {"table": "8, cosine", "model": "Mixtral-8x7B", "next_gate": 0.79, "residual": 0.89},
]
# A first measurement, before there was a runtime: (recall, busiest4); 12,000 calibration tokens of four domains, four others
# tested, an earlier dali-tiny.
FIRST = {
    ("smollm2-moe", 1): {"next_gate": (0.68, 0.44), "residual": (0.87, 0.80), "ridge": (0.92, 0.86)},
    ("smollm2-moe", 2): {"next_gate": (0.63, 0.40), "residual": (0.83, 0.76), "ridge": (0.90, 0.84)},
    ("smollm2-moe", 4): {"next_gate": (0.64, 0.42), "residual": (0.77, 0.68), "ridge": (0.88, 0.82)},
    ("dali-tiny", 1): {"next_gate": (0.74, 0.64), "residual": (0.74, 0.64), "ridge": (0.80, 0.68)},
    ("dali-tiny", 4): {"next_gate": (0.55, 0.52), "residual": (0.54, 0.47), "ridge": (0.62, 0.54)},
}


def recall(true: Tensor, predicted: Tensor) -> Tensor:
    """Share of the true experts that were predicted; ids [..., k] -> [...]."""
    found = (true.unsqueeze(-1) == predicted.unsqueeze(-2)).any(-1)
    return found.double().mean(-1)


def workloads(ids: Tensor, experts: int) -> Tensor:
    """Tokens per expert of each batch: ids [batch, ..., k] -> [..., experts]."""
    flat = ids.movedim(0, -2).flatten(-2).long()
    return torch.zeros(*flat.shape[:-1], experts, dtype=torch.long).scatter_add_(
        -1, flat, torch.ones_like(flat)
    )


def predicted_busiest(workload: Tensor, count: int) -> Tensor:
    """The `count` experts of highest workload, ties to the lower id: [..., experts] -> bool [..., experts]."""
    experts = workload.shape[-1]
    order = workload * experts - torch.arange(experts)
    return torch.zeros_like(workload, dtype=torch.bool).scatter_(-1, order.topk(count, -1).indices, True)


def busiest_found(workload: Tensor, chosen: Tensor, count: int) -> Tensor:
    """Share of the `count` busiest experts that were chosen: workload and chosen [..., experts] -> [...].

    Experts that tie for the last places hold equal parts of them.
    """
    last = workload.topk(count, -1).values[..., -1:]
    above, level = workload > last, workload == last
    places = count - above.sum(-1, keepdim=True)
    held = above + level * places / level.sum(-1, keepdim=True)
    return (held * chosen).sum(-1) / count


def interval(values: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Means of values [units, layers] over units, a layer and over all layers, with 95 % percentile bootstrap intervals."""
    units = len(values)
    draws = np.random.default_rng(seed).multinomial(units, [1 / units] * units, size=RESAMPLES) / units
    means = draws @ values  # [resamples, layers]

    def summary(mean: float, resampled: np.ndarray) -> dict[str, float]:
        low, high = np.percentile(resampled, (2.5, 97.5))
        return {"mean": round(float(mean), 4), "low": round(float(low), 4), "high": round(float(high), 4)}

    layers = [summary(mean, means[:, layer]) for layer, mean in enumerate(values.mean(0))]
    return summary(values.mean(), means.mean(1)) | {"layers": layers}


def cut(llm: dali.LLM, paths: Sequence[Path], most: int) -> list[list[int]]:
    """Up to `most` sequences, whole batches of them, of all texts and in an order of chance; measured parts do not overlap."""
    sequences = []
    for path in paths:
        tokens = llm.encode(path.read_text(encoding="utf-8"))
        starts = range(0, len(tokens) - PROMPT - MEASURED + 1, MEASURED)
        sequences += [tokens[start : start + PROMPT + MEASURED] for start in starts]
    random.Random(0).shuffle(sequences)
    return sequences[: min(most, len(sequences)) // BATCH * BATCH]


@contextmanager
def watching(routers: Sequence[Any]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Fills a list with (gate input [tokens, hidden], expert ids [tokens, k]), a layer after the other."""
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(router: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        seen.append((inputs[0].flatten(0, -2), outputs[2]))

    handles = [router.register_forward_hook(watch) for router in routers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class Score:
    """One predictor's results, sequence by sequence."""

    def __init__(self, predictor: Any) -> None:
        self.predictor = predictor
        self.recalls: list[list[float]] = []  # [sequences][layers]
        self.cosines: list[list[float]] = []
        self.ids: list[Tensor] = []  # predicted, [layers, tokens, k] each

    @torch.inference_mode()
    def add(self, seen: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take one sequence's gate inputs and ids of all layers."""
        recalls, cosines, ids = [], [], []
        for layer, (hidden, _) in enumerate(seen[: -self.predictor.distance]):
            target, predicted = self.predictor.predict(layer, hidden)
            gate_input, true = seen[target]
            recalls.append(recall(true, predicted).mean().item())
            ids.append(predicted)
            if isinstance(self.predictor, GateShift):
                shifts = self.predictor.shifts
                given = hidden if shifts is None else hidden + shifts[layer]
                cosines.append(torch.cosine_similarity(given.double(), gate_input.double()).mean().item())
        self.recalls.append(recalls)
        self.cosines.append(cosines)
        self.ids.append(torch.stack(ids))

    def summary(self, true: Tensor, experts: int) -> dict[str, Any]:
        """All metrics; `true` ids [sequences, layers, tokens, k]."""
        found: dict[str, Any] = {"recall": interval(np.array(self.recalls))}
        ids, true = torch.stack(self.ids), true[:, self.predictor.distance :]
        batches = [slice(begin, begin + BATCH) for begin in range(0, len(ids), BATCH)]
        for count in BUSIEST:
            shares = []
            for batch in batches:
                chosen = predicted_busiest(workloads(ids[batch], experts), GUESSED)
                shares.append(busiest_found(workloads(true[batch], experts), chosen, count).mean(-1))
            found[f"busiest{count}"] = interval(torch.stack(shares).numpy())
        if any(self.cosines):
            found["cosine"] = interval(np.array(self.cosines))
        return found


def measure(
    llm: dali.LLM, routers: Sequence[Any], paths: Sequence[Path], most: int
) -> Iterator[dict[str, Any]]:
    """A row for each distance and predictor on one set of texts."""
    sequences, experts = cut(llm, paths, most), len(llm.loaded.pool.records[0])
    scores = [Score(predictor(llm, routers, kind, distance)) for distance in DISTANCES for kind in PREDICTORS]
    true = []
    for tokens in sequences:
        with watching(routers) as seen:
            for _ in llm.engine.score(llm.sequence(tokens)):
                pass
        seen = [(hidden[PROMPT:], ids[PROMPT:]) for hidden, ids in seen]
        true.append(torch.stack([ids for _, ids in seen]))
        for score in scores:
            score.add(seen)
    kinds = [(distance, kind) for distance in DISTANCES for kind in PREDICTORS]
    for (distance, kind), score in zip(kinds, scores, strict=True):
        row = {"distance": distance, "predictor": kind, "sequences": len(sequences)}
        yield row | score.summary(torch.stack(true), experts)


def predictor(llm: dali.LLM, routers: Sequence[Any], kind: str, distance: int) -> Any:
    loaded = llm.loaded
    return load_predictor(
        kind,
        distance,
        llm.engine,
        llm.tokenizer,
        routers,
        loaded.top_k,
        loaded.name,
        loaded.fingerprint,
        silent,
    )


def folder(model: str) -> Path | None:
    """Where a model is: smollm2-moe out of the user's cache, built there first where it is missing."""
    if model == "dali-tiny":
        return None
    build = BENCHMARKS.parent / "recipes" / "smollm2_moe" / "build.py"
    return Path(
        subprocess.run([sys.executable, build], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = ["dali-tiny", "smollm2-moe"]
    parser.add_argument("--models", nargs="+", default=models, choices=models)
    parser.add_argument(
        "--sequences", type=int, default=80, help="of each set of texts, at most (default 80)"
    )
    options = parser.parse_args()
    rows, chance = [], {}
    for model in options.models:
        llm = dali.load(folder(model), quant="w8", dtype="float32")
        routers = seam.routers(llm.model, llm.layout.shape.hidden)
        experts, top_k = len(llm.loaded.pool.records[0]), llm.model.config.num_experts_per_tok
        chance[model] = {"recall": top_k / experts, "busiest": GUESSED / experts}
        for texts, paths in TEXTS.items():
            found = measure(llm, routers, paths, options.sequences)
            rows += [{"model": model, "texts": texts, **row} for row in found]
    for texts in TEXTS:
        print(f"Texts: {texts}")
        report.table([line(row) for row in rows if row["texts"] == texts])
        print()
    print("DALI, arXiv 2602.03495, distance 1, its own models and texts")
    report.table(PAPER)
    first = [
        {
            "model": model,
            "distance": distance,
            "predictor": kind,
            "recall": figures[0],
            "busiest4": figures[1],
        }
        for (model, distance), kinds in FIRST.items()
        for kind, figures in kinds.items()
    ]
    report.write("prefetch_accuracy", rows, chance=chance, paper=PAPER, first_measurement=first)


def line(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: means over layers and their intervals, and the first measurement's recall and busiest4."""
    shown = {key: row[key] for key in ("model", "distance", "predictor")}
    for metric in ("recall", *(f"busiest{count}" for count in BUSIEST), "cosine"):
        found = row.get(metric)
        shown[metric] = f"{found['mean']:.3f} ({found['low']:.3f}-{found['high']:.3f})" if found else ""
    first = FIRST.get((row["model"], row["distance"]), {}).get(row["predictor"])
    return shown | {"first": f"{first[0]:.2f}, {first[1]:.2f}" if first and row["texts"] == "other" else ""}


if __name__ == "__main__":
    main()
