"""How soon a turn begins behind tokens that the prefix cache has, beside reading them.

    python benchmarks/models/turn_start.py MODEL... [--tokens 2000] [--new 16] [--rounds 5] [--threads N]

A prompt of random tokens is read, and its first token awaited. Then another conversation takes its turn, so that the engine's
last state is the other's, and the prompt comes again with `new` tokens more: from RAM, and, where RAM has nothing, from disk,
once as the page cache has the files and once read from the device (dropped from the page cache). Seconds are from the request
to the first token, the new tokens' own computing included; shown are medians. "start" is without that: what it takes until the
engine could compute the first new token. "keep" is what leaving the prompt to the cache costs of reading it: both kinds of
reading take turns. A model is a path, a name, or `hybrid` for benchmarks/tools/random_hybrid.py's.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import dali
import report
from dali.engine.request import Request
from dali.engine.sampling import SamplingParams
from dali.engine.sequence import Sequence
from dali.llm import LLM

MOST = 5  # percent of reading the tokens
GREEDY = SamplingParams(temperature=0, ignore_eos=True)


class Turns:
    """Of one loaded model."""

    def __init__(self, llm: LLM, folder: Path, draw: random.Random) -> None:
        self.llm, self.folder, self.draw = llm, folder, draw
        self.words = llm.model.config.get_text_config().vocab_size

    def prompt(self, tokens: int) -> list[int]:
        return self.draw.choices(range(self.words), k=tokens)

    def ask(self, prompt: list[int], fresh: bool = False) -> tuple[float, Sequence]:
        """Seconds to the first token."""
        sequence = Sequence(Request(tuple(prompt), len(prompt) + 1, GREEDY))
        started = time.perf_counter()
        self.llm.loop.complete([sequence], fresh=fresh)
        return time.perf_counter() - started, sequence

    def drop_files(self) -> None:
        """Out of the page cache."""
        for path in self.folder.iterdir():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)

    def round(self, tokens: int, new: int) -> dict[str, float]:
        """One of each."""
        prefixes = self.llm.engine.prefixes
        assert prefixes.folder is not None
        prompt, found = self.prompt(tokens), {}
        found["not kept s"], _ = self.ask(self.prompt(tokens), fresh=True)
        found["read s"], _ = self.ask(prompt)
        prefixes.folder.flush()
        for where in ("ram", "disk", "device"):
            self.ask(self.prompt(8))
            prefixes.folder.flush()
            if where != "ram":
                self.llm.engine.forget()
            if where == "device":
                self.drop_files()
            seconds, sequence = self.ask([*prompt, *self.prompt(new)])
            # Whole blocks are shared by all; what is kept behind them is at the prompt's end.
            assert sequence.cached_tokens >= tokens - 1, sequence.cached_tokens
            found[f"{where} s"] = seconds
            found[f"{where} start s"] = seconds - sequence.prefill_seconds
        return found


def rows_of(name: str, llm: LLM, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    turns = Turns(llm, folder, random.Random(0))
    turns.round(64, arguments.new)  # warms up
    rounds = [turns.round(arguments.tokens, arguments.new) for _ in range(arguments.rounds)]
    middle = {key: statistics.median(found[key] for found in rounds) for key in rounds[0]}
    files = [path.stat().st_size for path in folder.iterdir()]
    row: dict[str, Any] = {"model": name, "tokens": arguments.tokens, "new": arguments.new}
    row |= {"read s": middle["read s"]}
    for where in ("ram", "disk", "device"):
        row[f"{where} %"] = 100 * middle[f"{where} s"] / middle["read s"]
        row[f"{where} start %"] = 100 * middle[f"{where} start s"] / middle["read s"]
    ratios = [found["read s"] / found["not kept s"] for found in rounds]
    row["keep %"] = 100 * (statistics.median(ratios) - 1)
    row["files"], row["MB"] = len(files), sum(files) / 1e6 / arguments.rounds
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()

    rows = []
    for model in arguments.models:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:
            path: Any = model
            if model == "hybrid":
                import random_hybrid

                path = Path(directory) / "hybrid"
                random_hybrid.write_checkpoint(path)
            folder = Path(directory) / "prefixes"
            with dali.load(path, threads=arguments.threads, cache_dir=folder, quant="w4") as llm:
                rows.append(rows_of(Path(model).name, llm, folder, arguments))
    report.table(rows)
    report.write("turn_start", rows)
    late = [row["model"] for row in rows if max(row[f"{where} %"] for where in ("ram", "disk")) >= MOST]
    if late:
        raise SystemExit(f"More than {MOST} % of reading the tokens: {', '.join(late)}")


if __name__ == "__main__":
    main()
