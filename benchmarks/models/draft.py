"""How fast answers come with drafts looked up in the text, beside without.

    python benchmarks/models/draft.py MODEL... [--tokens 200] [--rounds 5] [--streams 1 4] [--quant w8] [--threads N]

The answers are given: in the sampler's place stands what is said next, so that the text is the same whatever the model is, and
all else of a step is done. An `edit` is the prompt's program with a name changed, an `extract` every other sentence of the
prompt; `free` text goes on from where the prompt ends, and repeats what texts repeat. `streams` answers run side by side, on
parts of the texts of their own. With and without take turns; each answer begins with nothing learnt of what drafts are worth.
Tokens a second are each stream's over the steps in which its tokens were chosen, summed; shown are medians of the rounds;
`ratio` is the median of each round's. `accepted` is the share of drafted tokens that were right. Both ways must show the
sampler the same logits, bit for bit.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
import xxhash

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import dali
import report
from dali.engine.draft.drafts import Drafts
from dali.llm import LLM

TEXTS = Path(__file__).parents[1] / "texts"
PROGRAM = Path(dali.__file__).parent / "policies" / "guard.py"
LEAST = 0.98  # of the speed without, on free text


class Given:
    """Chooses given tokens, and notes the bits of what it is shown."""

    def __init__(self, tokens: list[int], look: bool) -> None:
        self._tokens, self._look = iter(tokens), look
        self.seen = xxhash.xxh3_64()

    def sample(self, logits: torch.Tensor, *others: object) -> int:
        if self._look:
            self.seen.update(logits.float().cpu().numpy())
        return next(self._tokens)


def texts(llm: LLM, tokens: int, stream: int) -> dict[str, tuple[list[int], list[int]]]:
    """Of each kind a prompt and its answer."""

    def ids(text: str) -> list[int]:
        found = llm.encode_further(text)
        begin = stream * tokens % max(len(found) - 2 * tokens, 1)
        return found[begin:]

    program = PROGRAM.read_text(encoding="utf-8")
    changed = ids(program.replace("_budget", "_means").replace("margin", "slack"))
    prose = (TEXTS / "household.txt").read_text(encoding="utf-8")
    told = llm.decode(ids(prose)[: 2 * tokens])
    sentences = re.split(r"(?<=[.!?]) ", told)
    free = ids((TEXTS / "perplexity.txt").read_text(encoding="utf-8"))
    return {
        "edit": (ids(program)[:tokens], changed[:tokens]),
        "extract": (llm.encode_further(told)[:tokens], llm.encode_further(" ".join(sentences[::2]))[:tokens]),
        "free": (free[:tokens], free[tokens : 2 * tokens]),
    }


def run(
    llm: LLM, asked: list[tuple[list[int], list[int]]], drafts: Drafts | None, look: bool
) -> tuple[float, list[Any]]:
    """Tokens a second of these answers side by side, and their sequences."""
    sequences = []
    for prompt, answer in asked:
        sequence = llm.sequence(prompt, max_tokens=len(answer), ignore_eos=True)
        sequence.sampler = Given(answer, look)  # type: ignore[assignment]
        sequences.append(sequence)
    llm.engine.drafts = drafts
    llm.loop.complete(sequences, fresh=True)
    return sum(len(sequence.generated) / sequence.decode_seconds for sequence in sequences), sequences


def row(llm: LLM, kind: str, streams: int, arguments: argparse.Namespace) -> dict[str, Any]:
    asked = [texts(llm, arguments.tokens, stream)[kind] for stream in range(streams)]
    seen = []
    for drafts in (None, Drafts(llm.telemetry)):  # warms up
        _, sequences = run(llm, asked, drafts, look=True)
        seen.append([sequence.sampler.seen.digest() for sequence in sequences])
    assert seen[0] == seen[1], "drafts have changed logits"
    without, with_, ratios = [], [], []
    drafted = accepted = 0
    for _ in range(arguments.rounds):
        plain, _ = run(llm, asked, None, look=False)
        fast, sequences = run(llm, asked, Drafts(llm.telemetry), look=False)
        without.append(plain)
        with_.append(fast)
        ratios.append(fast / plain)
        drafted += sum(sequence.drafted for sequence in sequences)
        accepted += sum(sequence.accepted for sequence in sequences)
    return {
        "model": llm.name,
        "text": kind,
        "streams": streams,
        "without tok/s": statistics.median(without),
        "with tok/s": statistics.median(with_),
        "ratio": statistics.median(ratios),
        "drafted": drafted / arguments.rounds,
        "accepted %": 100 * accepted / drafted if drafted else 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--tokens", type=int, default=200, help="of each prompt and of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--quant", default="w8")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()

    rows = []
    for model in arguments.models:
        with dali.load(model, quant=arguments.quant, threads=arguments.threads, draft="ngram") as llm:
            for streams in arguments.streams:
                rows += [row(llm, kind, streams, arguments) for kind in ("edit", "extract", "free")]
    report.table(rows)
    report.write("draft", rows)
    slow = [found["model"] for found in rows if found["text"] == "free" and found["ratio"] < LEAST]
    if slow:
        raise SystemExit(f"On free text below {LEAST} of the speed without drafts: {', '.join(slow)}")


if __name__ == "__main__":
    main()
