"""What looking ahead of a step brings a model whose experts are on disk: speed with it over that without, at several budgets.

    python benchmarks/models/look_ahead.py FOLDER [MODEL ...] [--ram 25 50 75] [--tokens 192] [--rounds 3]

MODEL is a directory or a GGUF file; besides, dali-tiny and the random model of from_disk.py, which is written into FOLDER (1.8
GB) with all stores. Each is loaded twice, with room for so many percent of its experts: once as it is, once with `prefetch`
none. Both answer the same prompts, a token of the one after a token of the other, so that whatever else the machine does meets
both; a pool is as the prompts before have left it.

ratio: the speed with looking ahead over that without, of all tokens; `first`: of the first 48 of the first answer, a run as short
as any; `low` and `high`: 95 % of what resampling the pairs of tokens gives. `stalled`: seconds of 100 that steps waited for the
disk without it. `ahead`: of the experts that had to be read, those that were read ahead, in time or nearly; `wasted`: reads ahead
in vain, of all reads.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))

import pytest

import dali
import from_disk
import report
from on_disk import load_on_disk

FIRST = 48
PROMPT = 32  # tokens
RESAMPLES = 1000


def measure(path: Any, share: int, tokens: int, rounds: int) -> dict[str, Any]:
    """One row."""
    with pytest.MonkeyPatch.context() as patch:
        everything = dali.load(path, cache_ram=0).loaded.pool
        slots = max(everything.layers * everything.experts * share // 100, 2)
        del everything
        both = [
            load_on_disk(patch, path, slots, cache_ram=0, ram="1TiB", prefetch=prefetch)
            for prefetch in ("none", None)
        ]
    resting, looking = both
    seconds: list[tuple[float, float]] = []
    same = True
    for number in range(rounds):
        prompt = Random(number).sample(range(3, min(resting.model.config.vocab_size, 4096)), PROMPT)
        sampled = {"temperature": 1.0, "seed": number, "max_tokens": tokens + 1, "ignore_eos": True}
        sequences = [llm.sequence(prompt, **sampled) for llm in both]
        for llm, sequence in zip(both, sequences, strict=True):
            llm.engine.add(sequence)
            llm.engine.step()  # the prompt
        for place in range(tokens):
            pair = [0.0, 0.0]
            for which in (0, 1) if place % 2 else (1, 0):
                began = time.perf_counter()
                both[which].engine.step()
                pair[which] = time.perf_counter() - began
            seconds.append((pair[0], pair[1]))
        assert all(sequence.finish_reason for sequence in sequences)
        same &= sequences[0].tokens == sequences[1].tokens
    return row(np.array(seconds), same, resting.telemetry.disk, looking.telemetry.disk)


def row(seconds: np.ndarray, same: bool, without: Any, with_it: Any) -> dict[str, Any]:
    def ratio(pairs: np.ndarray) -> float:
        return round(float(pairs[:, 0].sum() / pairs[:, 1].sum()), 3)

    generator = np.random.default_rng(0)
    drawn = [ratio(seconds[generator.integers(0, len(seconds), len(seconds))]) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    wanted = sum(with_it.misses) + with_it.ahead_used
    return {
        "tokens_per_second": round(len(seconds) / float(seconds[:, 0].sum()), 1),
        "hit_rate": round(without.hit_rate, 3),
        "stalled": round(100 * without.stalled_seconds / float(seconds[:, 0].sum())),
        "ratio": ratio(seconds),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
        "first": ratio(seconds[:FIRST]),
        "ahead": round((with_it.ahead_used + with_it.ahead_late) / max(wanted, 1), 3),
        "wasted": round(with_it.ahead_wasted / max(with_it.reads, 1), 3),
        "same_tokens": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--ram", nargs="+", type=int, default=[25, 50, 75])
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    settings = parser.parse_intermixed_args()
    random = from_disk.build(settings.folder)
    os.environ["DALI_CACHE_DIR"] = str(settings.folder / "cache")
    rows = []
    for name, path in [
        ("dali-tiny", None),
        ("random", random),
        *[(path.stem, path) for path in settings.models],
    ]:
        for share in settings.ram:
            found = measure(path, share, settings.tokens, settings.rounds)
            rows.append({"model": name, "ram": share} | found)
            print(rows[-1], file=sys.stderr, flush=True)
    report.table(rows)
    report.write("look_ahead", rows)


if __name__ == "__main__":
    main()
