"""Tiny models of every GGUF architecture that dali reads, as llama.cpp's converter writes them: llama.cpp's logits and dali's
against transformers'.

    pip install llama-cpp-python
    python benchmarks/models/gguf_architectures.py [NAME ...]

The files are those of tests/loading/gguf/converted, made by benchmarks/tools/convert_tiny.py: random weights in float32. Shown
is the largest difference of a logit over the largest logit, of llama.cpp's after each of 23 tokens, of dali's after the last.
llama.cpp keeps keys and values in float32 here. Where it departs from transformers, docs/MODELS.md says how.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
os.environ["DALI_KERNELS"] = "torch"  # activations in float32, as both others compute

import dali
import report
from dali.errors import DaliError
from tiny_architectures import TINY, tiny_model

FILES = Path(__file__).parents[2] / "tests" / "loading" / "gguf" / "converted"
TOKENS = torch.randint(5, 48, (23,), generator=torch.Generator().manual_seed(1)).tolist()


# llama.cpp's logits after each token, in a process of its own: it aborts on what it does not expect.
LLAMA_LOGITS = """
import json, sys
import llama_cpp
import numpy as np
path, out, tokens = sys.argv[1:]
kept = llama_cpp.GGML_TYPE_F32
cpu = dict(type_k=kept, type_v=kept, flash_attn=False, n_gpu_layers=0)
model = llama_cpp.Llama(path, n_ctx=64, n_batch=64, logits_all=True, verbose=False, **cpu)
model.eval(json.loads(tokens))
np.save(out, np.array(model.scores[: model.n_tokens], dtype=np.float32))
"""


def llama_logits(path: Path) -> torch.Tensor | None:
    """float32 [tokens, vocabulary]; None where llama.cpp does not load or run the file."""
    out = path.with_suffix(".npy")
    command = [sys.executable, "-c", LLAMA_LOGITS, str(path), str(out), json.dumps(TOKENS)]
    run = subprocess.run(command, capture_output=True)
    return None if run.returncode else torch.from_numpy(np.load(out))


class Seen:
    """Stands in for a sampler, and keeps the logits it is shown."""

    def __init__(self) -> None:
        self.logits: list[torch.Tensor] = []

    def sample(self, logits: torch.Tensor, tokens: object = ()) -> int:
        self.logits.append(logits.float().clone())
        return TOKENS[0]


def dali_logits(path: Path) -> torch.Tensor:
    """dali's logits after the prompt: float32 [1, vocabulary]."""
    llm = dali.load(path, dtype="float32")
    sequence = llm.sequence(TOKENS, max_tokens=1, ignore_eos=True)
    seen = Seen()
    sequence.sampler = seen  # type: ignore[assignment]
    llm.engine.add(sequence)
    while llm.engine.step():
        pass
    return seen.logits[0].reshape(1, -1)


def difference(found: torch.Tensor | None, wanted: torch.Tensor) -> float | None:
    if found is None:
        return None
    return float(f"{float((found - wanted[-len(found) :]).abs().max() / wanted.abs().max()):.1e}")


def row(name: str, path: Path) -> dict[str, Any]:
    with torch.inference_mode():
        wanted = tiny_model(name)(torch.tensor([TOKENS])).logits[0]
    try:
        ours = difference(dali_logits(path), wanted)
    except DaliError:
        ours = None
    return {"file": name, "llama_cpp": difference(llama_logits(path), wanted), "dali": ours}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="of the files; all by default")
    options = parser.parse_args()
    try:
        import llama_cpp
    except ModuleNotFoundError:
        parser.error("llama.cpp's Python package is not here: pip install llama-cpp-python")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names or TINY:
            path = Path(folder) / f"{name}.gguf"
            path.write_bytes(lzma.decompress((FILES / f"{name}.gguf.xz").read_bytes()))
            rows.append(row(name, path))
            print(rows[-1], flush=True)
    report.table(rows)
    if not options.names:
        report.write("gguf_architectures", rows, llama_cpp_python=llama_cpp.__version__, tokens=len(TOKENS))


if __name__ == "__main__":
    main()
