"""How long `dali run` on the model that ships inside takes to its first token, and how long it takes to refuse what it cannot do.

Beside each command stands what it cannot be faster than: a process that imports torch and transformers' one class of model and of
tokenizer. They take turns, as processes of their own, timed from their start to the first byte that they write. Their processor
time, exit included, says the same on a machine that is busy with other things.

    python benchmarks/models/start_up.py [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report

IMPORTS = """
import os
import torch
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeForCausalLM
print("ready", flush=True)
os._exit(0)
"""
ANSWER = ("run", "dali-tiny", "hi", "-n", "1")
LIMIT_S = 1.0  # of the first token over the imports
BARE = "imports alone"
CASES = {
    BARE: ("-c", IMPORTS),
    "first token": ("-m", "dali", *ANSWER),
    "first token, nothing packed yet": ("-m", "dali", *ANSWER),
    "no such model": ("-m", "dali", "run", "no-such-model", "hi"),
    "no GPU": ("-m", "dali", *ANSWER, "--device", "cuda"),
    "too many threads": ("-m", "dali", *ANSWER, "--threads", "100000"),
    "too large a context": ("-m", "dali", *ANSWER, "--ctx-size", "100000"),
    "a system without an accelerator": ("-m", "dali", *ANSWER, "--system", "lru"),
    "help": ("-m", "dali", "run", "--help"),
}


def seconds(arguments: tuple[str, ...], environment: Mapping[str, str]) -> tuple[float, float]:
    """From the start of `python ARGUMENTS` to its first byte, on stdout or stderr; and the processor time that it took in all."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    ) as process:
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 1)
        told = time.perf_counter() - start
        said = first + process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1, 2) or b"Traceback" in said:
        raise SystemExit(f"{arguments} failed: {said.decode(errors='replace')}")
    return told, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="processes of each kind (default 7)")
    rounds = parser.parse_args().rounds

    own = {name: value for name, value in os.environ.items() if not name.startswith("DALI_")}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as packed:
        seconds(
            CASES["first token"], own | {"DALI_CACHE_DIR": packed}
        )  # the model is packed, files are cached
        for _ in range(rounds):
            for name, arguments in CASES.items():
                with tempfile.TemporaryDirectory() as empty:
                    cache = empty if name.endswith("packed yet") else packed
                    found[name].append(seconds(arguments, own | {"DALI_CACHE_DIR": cache}))
    rows = []
    for name, times in found.items():
        told, processor = (statistics.median(column) for column in zip(*times, strict=True))
        over, over_processor = (
            statistics.median(a - b for a, b in zip(ours, bare, strict=True))
            for ours, bare in zip(zip(*times, strict=True), zip(*found[BARE], strict=True), strict=True)
        )
        rows.append(
            {
                "what": name,
                "first_byte_s": round(told, 2),
                "over_imports_s": round(over, 2),
                "limit_s": LIMIT_S if name == "first token" else "",
                "processor_s": round(processor, 2),
                "over_imports_processor_s": round(over_processor, 2),
            }
        )
    report.table(rows)
    report.write("start_up", rows, rounds=rounds)


if __name__ == "__main__":
    main()
