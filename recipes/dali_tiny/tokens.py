#!/usr/bin/env python3
"""dali-tiny's tokenizer (byte-level BPE, 4096 tokens) and its text as tokens.

Run as a script, it trains the tokenizer on --text and writes tokenizer.json and, for every domain, the
documents as token ids, NAME.train.npz and NAME.held.npz, into --work.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

VOCABULARY = 4096
SPECIAL_TOKENS = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]
END_OF_TEXT, END_OF_TURN = 0, 3
# what part of a training batch comes from each domain
MIXTURE = {
    "stories": 0.30,
    "chat": 0.22,
    "math": 0.06,
    "tales": 0.08,
    "novels": 0.12,
    "kjv": 0.08,
    "python": 0.09,
    "factbook": 0.05,
}


def train_tokenizer(domains: dict[str, list[str]]) -> Tokenizer:
    """On 18 MB in the proportions of the mixture."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    sample = []
    for name in sorted(domains):
        budget = int(18e6 * MIXTURE[name])
        for document in domains[name]:
            sample.append(document)
            budget -= len(document)
            if budget < 0:
                break
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    return tokenizer


def write_ids(tokenizer: Tokenizer, documents: list[str], path: Path) -> None:
    """ids: the documents one after the other, each closed by END_OF_TEXT; starts: where each begins."""
    ids: list[int] = []
    starts = []
    for encoding in tokenizer.encode_batch(documents):
        starts.append(len(ids))
        ids += [*encoding.ids, END_OF_TEXT]
    np.savez(path, ids=np.array(ids, np.uint16), starts=np.array(starts, np.int32))
    print(f"{path.stem:15s} {len(documents):6d} documents {len(ids) / 1e6:6.2f} M tokens", flush=True)


class Batches:
    """Endless training batches, each of them in the proportions of the mixture."""

    def __init__(self, work: Path, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.domains = []
        for name in MIXTURE:
            with np.load(work / f"{name}.train.npz") as file:
                self.domains.append((file["ids"], file["starts"]))
        self.cumulative = np.cumsum(np.array(list(MIXTURE.values())) / sum(MIXTURE.values()))

    def draw(self, sequences: int, length: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets [sequences, length]; half the sequences begin with a document, half anywhere."""
        rows = np.empty((sequences, length + 1), np.int64)
        stratified = (np.arange(sequences) + self.rng.random()) / sequences
        last = len(self.domains) - 1
        for i, domain in enumerate(np.searchsorted(self.cumulative, stratified, side="right").clip(0, last)):
            ids, starts = self.domains[domain]
            at = self.rng.choice(starts) if self.rng.random() < 0.5 else self.rng.integers(len(ids))
            at = min(int(at), len(ids) - length - 1)
            rows[i] = ids[at : at + length + 1]
        batch = torch.from_numpy(rows)
        return batch[:, :-1], batch[:, 1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True, help="what corpus.py and generate.py wrote")
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    domains = {
        name: (options.text / f"{name}.txt").read_text(encoding="utf-8").split("\0") for name in MIXTURE
    }
    tokenizer = train_tokenizer(domains)
    tokenizer.save(str(options.work / "tokenizer.json"))
    for name, documents in domains.items():
        n_held = max(2, min(len(documents) // 20, 400))
        step = max(1, len(documents) // n_held)
        held = range(step // 2, len(documents), step)  # evenly spread
        write_ids(tokenizer, [documents[i] for i in held], options.work / f"{name}.held.npz")
        rest = [document for i, document in enumerate(documents) if i not in held]
        write_ids(tokenizer, rest, options.work / f"{name}.train.npz")


if __name__ == "__main__":
    main()
