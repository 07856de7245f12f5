"""Random conversations with edits, forks, evictions and restarts: each is to be answered as a fresh engine answers, bit for bit.

    python benchmarks/models/resumed.py [--conversations 1000] [--seed 0] [--processes 4]

The models are the tests' tiny random ones, one family of each kind: all tokens seen, windows, recurrent layers, latents. Before a
fifth of the conversations the engine is begun anew over the same folder, with budgets in RAM and on disk that are none, tiny or
ample, and ten times the model is loaded anew. Of every turn, all logits that tokens were chosen by are compared with those of the
same prompt computed in full.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
sys.path.append(str(Path(__file__).parents[2] / "tests"))

import dali
import report
from conversing import Conversations
from decoding_families import DECODING, decoding_model
from families import FAMILIES, random_model, save_model

KINDS = {"qwen3_moe": "plain", "gpt_oss": "windowed", "qwen3_next": "recurrent", "deepseek_v2": "latent"}
CONTEXT, WORDS, LOADS = 192, 97, 10


def run(family: str, conversations: int, seed: int) -> dict[str, Any]:
    """One family's row."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ["DALI_CACHE_DIR"] = directory
        return run_in(Path(directory), family, conversations, seed)


def run_in(directory: Path, family: str, conversations: int, seed: int) -> dict[str, Any]:
    make = random_model if family in FAMILIES else decoding_model
    model = save_model(make(family, max_position_embeddings=CONTEXT), directory / "model")
    folder = directory / "prefixes"
    folder.mkdir()
    started, all_of_them = time.perf_counter(), None
    for part in range(LOADS):
        with dali.load(model, quant="w8") as llm:
            if all_of_them is None:
                all_of_them = Conversations(llm, folder, seed, CONTEXT, WORDS)
            else:
                all_of_them.llm = llm
                all_of_them.reopen()
            for _ in range(conversations * (part + 1) // LOADS - conversations * part // LOADS):
                all_of_them.converse()
            all_of_them.finish()
    assert all_of_them is not None
    counts = asdict(all_of_them.counts)
    taken = counts.pop("taken")
    counts |= {"from_ram": taken["ram"], "from_disk": taken["disk"]}
    seconds = round(time.perf_counter() - started, 1)
    return {"kind": KINDS[family], "family": family, **counts, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--conversations", type=int, default=1000, help="of each family (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=4, help="families at once (default 4)")
    arguments = parser.parse_args()

    families = [family for family in KINDS if family in FAMILIES or family in DECODING]
    one = partial(run, conversations=arguments.conversations, seed=arguments.seed)
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as processes:
        rows = list(processes.map(one, families))
    report.table(rows)
    report.write("resumed", rows)
    if any(row["different"] for row in rows):
        raise SystemExit("There are turns that were not answered as by a fresh engine.")


if __name__ == "__main__":
    main()
