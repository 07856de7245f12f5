"""A model whose experts are larger than its budget of RAM: what dali takes, whether the answer is the same, and how near the disk
it comes.

    python benchmarks/models/from_disk.py FOLDER [--ram 1000MiB,1200MiB] [--tokens 60]

In FOLDER a random Qwen3-MoE is written (1.8 GB; 12 layers of 32 experts, 918 MiB of them in w8), unless it is there, and its
store. Each budget runs in a process of its own, and all experts in RAM first: a prompt of 512 tokens, another one, then an answer
sampled at temperature 1, whose tokens a random model's are as good as any: its routing has no favourites, which is the worst case
for what stays in RAM. The first prompt is the one for which the system has to provide memory.

peak is the most memory that the process ever had (VmHWM), loading and, in a run that finds no store, packing included. Before and
after the prompt and the answer the disk is read alone, random experts past the page cache, 2, 4 and 8 at a time: the most that it
gives around a phase is its speed there. `of_bound`: the seconds that it needs at that speed for what was wanted of it and was not
in RAM, of the seconds that the phase took; of a prompt that is each needed expert once. `busy`: of these seconds, those in which
any read was under way. `with_computing`: what the answer would take at best if nothing were read before its layer's router has
spoken, of what it took: those seconds, and all of computing but the experts in RAM, which is measured with all of them there. Of
a prompt: the seconds of the disk or of computing, whichever are more.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import report

PROMPT = 512
TRIAL = 0.15  # seconds of reading the disk alone, for each number of reads at a time


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


def disk_speed(path: Path, record: int) -> float:
    """Bytes a second of the disk that nothing else is asked of, in random reads of so many bytes."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    records, chance = os.fstat(file).st_size // record, Random(time.time_ns())
    memory = mmap.mmap(-1, 32 * record, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # more than caches hold
    memory.madvise(mmap.MADV_HUGEPAGE)  # as experts' memory is
    best = 0.0
    for depth in 2, 4, 8:
        until = time.perf_counter() + TRIAL

        def read(place: int, until: float = until) -> int:
            nbytes = 0
            while time.perf_counter() < until:
                slot = (place + 8 * chance.randrange(4)) * record
                into = memoryview(memory)[slot : slot + record]
                nbytes += os.preadv(file, [into], chance.randrange(records) * record)
            return nbytes

        began = time.perf_counter()
        with ThreadPoolExecutor(depth) as pool:
            nbytes = sum(pool.map(read, range(depth)))
        best = max(best, nbytes / (time.perf_counter() - began))
    os.close(file)
    return best


def speed_apart(pool: Any) -> float:
    """The same in a process of its own, whose memory is not this one's."""
    if pool is None:
        return 0.0
    record = max(layout.record_bytes for layout in pool.layouts)
    command = [sys.executable, __file__, str(pool.path), "--speed", str(record)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def run(path: Path, ram: str | None, tokens: int) -> dict[str, Any]:
    """One row, in this process."""
    import dali
    from dali.kernels.native.measure import seconds as kernel_seconds
    from dali.store.disk_pool import DiskPool

    llm = dali.load(path, quant="w8", cache_ram=0, **({} if ram is None else {"ram": ram}))
    pool = llm.loaded.pool if isinstance(llm.loaded.pool, DiskPool) else None
    first, prompt = (Random(seed).sample(range(3, 4096), PROMPT) for seed in (1, 0))
    sampled: dict[str, Any] = {"ignore_eos": True, "temperature": 1.0, "seed": 1}
    row: dict[str, Any] = {"ram": ram or "all", "experts_mib": llm.expert_bytes >> 20}
    began = time.perf_counter()
    llm.generate(first, max_tokens=1, ignore_eos=True)
    row["first_prompt_seconds"] = time.perf_counter() - began
    generated: list[int] = []
    for name in "prompt", "answer":
        sequence = llm.sequence(prompt, max_tokens=1 if name == "prompt" else tokens, **sampled)
        speeds = [speed_apart(pool)]
        stream = llm.loop.stream(sequence)
        if name == "answer":
            next(stream)  # the prompt once more
        experts = kernel_seconds()["experts"]
        before, began = llm.telemetry.disk, time.perf_counter()
        for _ in stream:
            pass
        seconds, after = time.perf_counter() - began, llm.telemetry.disk
        generated = sequence.generated
        row[f"{name}_seconds"] = round(seconds, 3)
        if before is None or after is None:
            row[f"{name}_expert_seconds"] = kernel_seconds()["experts"] - experts
            continue
        counted, speed = after.since(before), max(*speeds, speed_apart(pool))
        row[f"{name}_hit_rate"] = round(counted.hit_rate, 3)
        row[f"{name}_disk_mb_s"] = round(speed / 1e6)
        row[f"{name}_of_bound"] = round(counted.wanted_bytes / speed / seconds, 3)
        row[f"{name}_disk_seconds"] = counted.wanted_bytes / speed
        row[f"{name}_busy"] = round(counted.busy_seconds / seconds, 3)
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
    parser.add_argument("--speed", type=int, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.speed is not None:
        print(disk_speed(settings.folder, settings.speed))
        return
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
        if ram:
            least = max(row["prompt_disk_seconds"], rows[0]["prompt_seconds"])
            rows[-1]["prompt_with_computing"] = round(least / row["prompt_seconds"], 3)
            least = row["answer_disk_seconds"] + rows[0]["answer_seconds"]
            least -= row["answer_hit_rate"] * rows[0]["answer_expert_seconds"]
            rows[-1]["answer_with_computing"] = round(least / row["answer_seconds"], 3)
    for row in rows:
        for name, value in row.items():
            row[name] = round(value, 3) if isinstance(value, float) else value
    report.table([{key: row.get(key, "") for key in rows[-1]} for row in rows])
    report.write("from_disk", rows)


if __name__ == "__main__":
    main()
