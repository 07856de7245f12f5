"""Do dali and llama.cpp say the same? Teacher-forced over the same GGUF files of the two real models.

    pip install llama-cpp-python
    python benchmarks/agreement.py [--models dali-tiny smollm2-moe] [--types F16 Q8_0 Q4_0] [--tokens 2000]

The files are written by benchmarks/export_gguf.py; the tokens are texts/perplexity.txt's, in windows of 500. Agreement = tokens
after which both find the same next token most likely; KL is that of dali's distribution from llama.cpp's, in nats.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from transformers import AutoModelForCausalLM, AutoTokenizer

import dali
import report
from dali.engine.locate import locate
from export_gguf import encode_as, write_gguf

TEXT = Path(__file__).parent / "texts" / "perplexity.txt"
WINDOW = 500
TARGET_PERCENT = 98


def compare(file: Path, tokens: int) -> dict[str, float]:
    """Agreement and divergence on the first `tokens` tokens of the text."""
    ours = dali.load(file)
    theirs = llama_cpp.Llama(str(file), n_ctx=WINDOW, logits_all=True, verbose=False)
    text = TEXT.read_text()
    ids = ours.encode(text)[:tokens]
    assert ids == theirs.tokenize(text.encode(), add_bos=False)[:tokens], "both must read the same tokens"
    agreed, divergence = 0, 0.0
    for begin in range(0, len(ids), WINDOW):
        window = ids[begin : begin + WINDOW]
        theirs.reset()
        theirs.eval(window)
        expected = torch.from_numpy(np.array(theirs.scores[: len(window)]))
        found = torch.cat(list(ours.engine.score(ours.sequence(window))))
        agreed += int((expected.argmax(dim=1) == found.argmax(dim=1)).sum())
        p, q = (logits.double().log_softmax(dim=1) for logits in (expected, found))
        divergence += float((p.exp() * (p - q)).sum())
    theirs.close()
    return {
        "tokens": len(ids),
        "agreement_percent": round(100 * agreed / len(ids), 2),
        "target_percent": TARGET_PERCENT,
        "mean_kl": round(divergence / len(ids), 6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["dali-tiny", "smollm2-moe"])
    parser.add_argument("--types", nargs="+", default=["F16", "Q8_0", "Q4_0"])
    parser.add_argument("--tokens", type=int, default=2000)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            directory = locate(name, offline=True)
            model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(directory)
            for kind in options.types:
                file = write_gguf(model, tokenizer, Path(folder, f"{name}.gguf"), encode_as(Type[kind]))
                rows.append({"model": name, "type": kind, **compare(file, options.tokens)})
    report.table(rows)
    report.write("agreement", rows, llama_cpp_python=llama_cpp.__version__)


if __name__ == "__main__":
    main()
