"""GGUF files as llama.cpp's quantizer writes them: perplexity by dali and by llama.cpp on the same tokens, and memory.

    (llama.cpp's programs and package: as vs_llama_cpp.py says, with the targets llama-quantize and llama-imatrix)
    LLAMA_CPP_LIB_PATH=llama/bin python benchmarks/models/gguf_perplexity.py llama_cpp_python-*/vendor/llama.cpp llama/bin \\
        [--models dali-tiny smollm2-moe] [--files Q4_K_M ...] [--tokens 4096] [--directory D] [--add]

Each model as it is, with the types that its narrow matrices can have, and widened with zeros (benchmarks/tools/widen.py) with
all types. Importance from the calibration text. Read are windows of 256 tokens of texts/, --tokens of each at most; keys and
values are float32 on both sides.

exact = the file's values in float32, computed by llama.cpp. dali and llama_cpp each round activations in their own way: their
difference is noise where it is at most three of its standard errors, which come from the windows' differences; one row in twenty
is beyond two. dali_mb = packed experts and everything else that dali keeps; file_mb = the file's tensors. A file that dali
refuses, or converts, says so. --directory keeps checkpoints and files; --add keeps the last result's rows of other files.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from widen import widen

BENCHMARKS = Path(__file__).parents[1]
TEXTS = [BENCHMARKS / "texts" / f"{name}.txt" for name in ("perplexity", "dialogue", "household")]
CALIBRATION = BENCHMARKS.parent / "src" / "dali" / "texts" / "calibration.txt"
CONVERT = BENCHMARKS / "tools" / "convert_checkpoint.py"
WINDOW = 256
NOISE = 3  # standard errors
CHUNKS = 48  # windows of the calibration text that importance is from
NAME = "gguf_perplexity"
NARROW = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_1", "Q5_0", "Q4_K_M", "Q4_1", "Q4_0", "IQ4_NL", "Q3_K_M")
FILES = {file: [file] for file in NARROW} | {
    "IQ4_XS": ["IQ4_XS"],
    "MXFP4": ["MXFP4_MOE"],
    "NVFP4": [
        "--tensor-type",
        "(attn_.|attn_output|exps).weight=nvfp4",
        "Q8_0",
    ],  # no file type of the quantizer's
    **{file: [file] for file in ("Q2_K", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")},
    **{file: [file] for file in ("TQ2_0", "TQ1_0")},
}
Windows = list[list[int]]


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, by a process of its own: none is to hold both programs' libraries, nor to end with one of them."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def windows_of(checkpoint: Path, tokens: int) -> Windows:
    """The texts' whole windows, as the checkpoint's tokenizer reads them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    texts = [tokenizer(path.read_text(), add_special_tokens=False).input_ids[:tokens] for path in TEXTS]
    return [ids[at : at + WINDOW] for ids in texts for at in range(0, len(ids) - WINDOW + 1, WINDOW)]


def mean_loss(logits: Tensor, window: list[int]) -> float:
    """The mean negative log-likelihood of a window's tokens but the first: logits [tokens, vocabulary] after each."""
    return float(torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(window[1:])))


def llama_cpp_losses(file: Path, windows: Windows, threads: int) -> list[float]:
    import llama_cpp

    kept = llama_cpp.GGML_TYPE_F32
    model = llama_cpp.Llama(
        str(file),
        n_ctx=WINDOW,
        logits_all=True,
        verbose=False,
        type_k=kept,
        type_v=kept,
        n_threads=threads,
        n_threads_batch=threads,
    )
    losses = []
    for window in windows:
        model.reset()
        model.eval(window)
        losses.append(mean_loss(torch.from_numpy(model.scores[:WINDOW]), window))
    return losses


def dali_losses(file: Path, windows: Windows, threads: int) -> tuple[list[float], int, str]:
    """Losses, the bytes kept, and what there is to say: of a file that is refused, nothing else."""
    import dali
    from dali.errors import DaliError

    try:
        llm = dali.load(file, dtype="float32", threads=threads)
    except DaliError as error:
        return [], 0, f"refused: {error.problem.replace(str(file), file.name)}"
    losses = [
        mean_loss(torch.cat(list(llm.engine.score(llm.sequence(window)))), window) for window in windows
    ]
    converted = ", ".join(llm.loaded.converted)
    return losses, llm.expert_bytes + llm.dense_bytes, f"converted: {converted}" if converted else ""


def excess(losses: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """By how many percent the perplexity exceeds that of `base`, of the same windows, and its standard error."""
    differences = torch.tensor(losses, dtype=torch.float64) - torch.tensor(base, dtype=torch.float64)
    ratio = math.exp(float(differences.mean()))
    return 100 * (ratio - 1), 100 * ratio * float(differences.std()) / math.sqrt(len(differences))


def perplexity(losses: Sequence[float]) -> float:
    return round(math.exp(sum(losses) / len(losses)), 4)


def tensors_of(file: Path) -> tuple[int, str]:
    """Bytes of a file's tensors, and the types of its matrices, the one with most bytes first."""
    import gguf

    found: Counter[str] = Counter()
    total = 0
    for tensor in gguf.GGUFReader(file).tensors:
        total += int(tensor.n_bytes)
        if "norm" not in tensor.name and "gate_inp" not in tensor.name:
            found[tensor.tensor_type.name] += int(tensor.n_bytes)
    return total, " ".join(name for name, _ in found.most_common())


class Quantizer:
    """llama.cpp's converter and quantizer on one checkpoint."""

    def __init__(self, sources: Path, programs: Path, checkpoint: Path, folder: Path, threads: int) -> None:
        self.programs, self.folder, self.threads = programs, folder, str(threads)
        self.base, self.importance = folder / "F32.gguf", folder / "importance.gguf"
        if not self.base.is_file():  # apart, as the converter has a gguf package of its own
            run(sys.executable, CONVERT, sources, checkpoint, "ALL_F32", self.base)
        if not self.importance.is_file():
            asked = ["-m", self.base, "-f", CALIBRATION, "-c", WINDOW, "--chunks", CHUNKS, "-t", self.threads]
            run(programs / "llama-imatrix", *asked, "-o", self.importance)

    def write(self, name: str) -> Path:
        file = self.folder / f"{name}.gguf"
        if not file.is_file():
            *options, kind = FILES[name]
            self._quantize(["--imatrix", self.importance, *options], self.base, file, kind)
        return file

    def exact(self, file: Path) -> Path:
        """The file's values in float32."""
        out = file.with_suffix(".f32")
        self._quantize(["--allow-requantize"], file, out, "F32")
        return out

    def _quantize(self, options: list[Any], source: Path, out: Path, kind: str) -> None:
        run(self.programs / "llama-quantize", *options, source, out, kind, self.threads)


def run(*command: Any) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{(done.stderr or done.stdout)[-2000:]}")


def measure(quantizer: Quantizer, name: str, windows: Windows, threads: int) -> dict[str, Any]:
    file = quantizer.write(name)
    size, types = tensors_of(file)
    row = {"types": types, "windows": len(windows)}
    theirs = apart(llama_cpp_losses, file, windows, threads)
    wide = quantizer.exact(file)
    exact = apart(llama_cpp_losses, wide, windows, threads)
    wide.unlink()
    try:
        ours, kept, note = apart(dali_losses, file, windows, threads)
    except BrokenProcessPool:
        ours, kept, note = [], 0, "dali's process ended"
    row |= {
        "exact": perplexity(exact),
        "llama_cpp": perplexity(theirs),
        "dali": perplexity(ours) if ours else None,
        "llama_cpp_vs_exact_percent": round(excess(theirs, exact)[0], 3),
    }
    against_exact, _ = excess(ours, exact) if ours else (None, None)
    difference, error = excess(ours, theirs) if ours else (None, None)
    return row | {
        "dali_vs_exact_percent": rounded(against_exact, 3),
        "dali_vs_llama_cpp_percent": rounded(difference, 3),
        "standard_error_percent": rounded(error, 3),
        "noise": None if difference is None or error is None else abs(difference) <= NOISE * error,
        "file_mb": round(size / 1e6, 2),
        "dali_mb": round(kept / 1e6, 2) if ours else None,
        "dali_over_file": round(kept / size, 3) if ours else None,
        "note": note,
    }


def rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def others(rows: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of other files."""
    return [other for other in rows if any(other[key] != row[key] for key in ("model", "file"))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("llama_cpp", type=Path, help="its sources: a folder with conversion/ and gguf-py/")
    parser.add_argument("programs", type=Path, help="the folder of llama-quantize and llama-imatrix")
    parser.add_argument("--models", nargs="+", default=["dali-tiny", "smollm2-moe"])
    parser.add_argument("--files", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--add", action="store_true")
    options = parser.parse_args()
    from dali.loading.locate import locate

    last = report.BENCHMARKS / "results" / f"{NAME}.json"
    rows: list[dict[str, Any]] = json.loads(last.read_text())["rows"] if options.add else []
    with tempfile.TemporaryDirectory() as temporary:
        for model in options.models:
            checkpoint = locate(model, offline=True)
            windows = windows_of(checkpoint, options.tokens)
            for name, files in ((checkpoint.name, NARROW), (f"{checkpoint.name}, widened", FILES)):
                folder = (options.directory or Path(temporary)) / name.replace(", ", "-")
                folder.mkdir(parents=True, exist_ok=True)
                wide = folder / "checkpoint"
                if files is FILES and not wide.is_dir():
                    widen(checkpoint, wide)
                source = wide if files is FILES else checkpoint
                quantizer = Quantizer(options.llama_cpp, options.programs, source, folder, options.threads)
                for file in [file for file in options.files if file in files]:
                    row = {"model": name, "file": file}
                    row |= measure(quantizer, file, windows, options.threads)
                    rows = [*others(rows, row), row]
                    report.write(NAME, rows)  # what an interruption leaves
    report.table(rows)


if __name__ == "__main__":
    main()
