"""A model whose experts are larger than its budget of RAM: what dali takes, whether the answer is the same, and how near the disk
it comes.

    python benchmarks/models/from_disk.py FOLDER [--ram 1000MiB,1200MiB] [--tokens 60]

In FOLDER a random Qwen3-MoE is written (1.8 GB; 12 layers of 32 experts, 918 MiB of them in w8), unless it is there, and its
store. Each budget runs in a process of its own, and all experts in RAM first: a prompt of 512 tokens, then an answer sampled at
temperature 1, whose tokens a random model's are as good as any: its routing has no favourites, which is the worst case for what
stays in RAM.

peak is the most memory that the process ever had (VmHWM), loading and, in a run that finds no store, packing included. `disk` is
bytes a second while any read was under way. `of_bound`: the seconds that the disk needs for what was wanted of it and was not in
RAM, at that speed, of the seconds that it took; of a prompt that is each needed expert once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import report

PROMPT = 512


def build(folder: Path) -> Path:
    """The model's directory."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    from families import save_model

    path = folder / "model"
    if not (path / "config.json").exists():
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        config = Qwen3MoeConfig(
            vocab_size=4096,
            hidden_size=1024,
            intermediate_size=2048,
            moe_intermediate_size=768,
            num_hidden_layers=12,
            num_attention_heads=16,
            num_key_value_heads=4,
            head_dim=64,
            num_experts=32,
            num_experts_per_tok=4,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            initializer_range=0.05,
        )
        model = AutoModelForCausalLM.from_config(config)
        model.model.embed_tokens.weight.data *= 40  # so that tokens are told apart in all layers
        save_model(model, path)
    return path


def peak() -> int:
    """Bytes of memory that this process ever had at a time."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def run(path: Path, ram: str | None, tokens: int) -> dict[str, Any]:
    """One row, in this process."""
    import dali

    llm = dali.load(path, quant="w8", cache_ram=0, **({} if ram is None else {"ram": ram}))
    prompt = Random(0).sample(range(3, 4096), PROMPT)
    row: dict[str, Any] = {"ram": ram or "all", "experts_mib": llm.expert_bytes >> 20}
    read = []
    generated: list[int] = []
    for most in (1, tokens):
        before, began = llm.telemetry.disk, time.perf_counter()
        answer = llm.generate(prompt, max_tokens=most, ignore_eos=True, temperature=1.0, seed=1)
        seconds, generated = time.perf_counter() - began, answer.tokens
        counted = None if before is None or llm.telemetry.disk is None else llm.telemetry.disk.since(before)
        read.append((seconds, counted))
    for name, (seconds, counted) in zip(("prompt", "answer"), read, strict=True):
        row[f"{name}_seconds"] = round(seconds, 2)
        if counted is not None:
            speed = counted.read_bytes / max(counted.busy_seconds, 1e-9)
            row[f"{name}_hit_rate"] = round(counted.hit_rate, 3)
            row[f"{name}_disk_mb_s"] = round(speed / 1e6)
            row[f"{name}_of_bound"] = round(counted.wanted_bytes / speed / seconds, 3)
            row[f"{name}_amplification"] = round(counted.amplification, 3)
    return row | {"peak_mib": peak() >> 20, "tokens": generated}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ram", default="900MiB,1000MiB,1200MiB,1400MiB")
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.one is not None:
        row = run(settings.folder / "model", settings.one or None, settings.tokens)
        print(json.dumps(row))
        return
    build(settings.folder)
    os.environ["DALI_CACHE_DIR"] = str(settings.folder / "cache")
    rows, expected = [], None
    for ram in ["", *settings.ram.split(",")]:
        command = [
            sys.executable,
            __file__,
            str(settings.folder),
            "--one",
            ram,
            "--tokens",
            str(settings.tokens),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        row = json.loads(done.stdout.splitlines()[-1])
        tokens = row.pop("tokens")
        expected = expected or tokens
        rows.append(row | {"same_tokens": tokens == expected})
    report.table([{key: row.get(key, "") for key in rows[-1]} for row in rows])
    report.write("from_disk", rows)


if __name__ == "__main__":
    main()
