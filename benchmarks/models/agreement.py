"""Do dali and llama.cpp say the same? Teacher-forced over the same GGUF files of the two real models.

    pip install llama-cpp-python
    python benchmarks/models/agreement.py [--models dali-tiny smollm2-moe] [--types F32 F16 Q8_0 Q4_0] [--tokens 2000]

The files are written by benchmarks/tools/export_gguf.py; the tokens are texts/perplexity.txt's, in windows of 500. Both keep keys
and values in float32 (llama.cpp's default is float16), and llama.cpp runs without flash attention. Agreement = tokens after
which both find the same next token most likely; KL is that of dali's distribution from llama.cpp's, in nats.

What agreement can mean is in the other columns:
- dali made to choose llama.cpp's experts (routes held): what is left when no near-tie of two experts falls the other way;
- dali against itself with every value of its embeddings one unit in the last place (2^-23 to 2^-24 of it) higher: the model's own
  sensitivity in this arithmetic, and what to expect of anything that does not compute the same bits;
- llama.cpp against itself, once fed one token at a time (other sums in its matrix products), once with flash attention;
- dali and llama.cpp against the file's very values in float32, activations included (dali's reference kernels in torch).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import dali
import report
from dali.kernels import native
from dali.loading.locate import locate
from export_gguf import encode_as, write_gguf

try:
    import llama_cpp
    from llama_cpp._internals import LlamaContext
except ModuleNotFoundError:
    llama_cpp = None

TEXT = Path(__file__).parents[1] / "texts" / "perplexity.txt"
WINDOW = 500
TARGET_PERCENT = 98
ORDER = "ffn_moe_argsort-"  # llama.cpp's tensor of a layer's experts, best first: int32 [tokens, experts]


def llama_logits(
    file: Path, ids: list[int], orders: dict[int, list[Tensor]] | None = None, **options: Any
) -> Tensor:
    """llama.cpp's logits after each token, each window for itself: float32 [tokens, vocabulary]. Adds to `orders`, by layer,
    the experts of each window, best first, [tokens * experts]."""
    kept = llama_cpp.GGML_TYPE_F32
    model = llama_cpp.Llama(
        str(file), n_ctx=WINDOW, logits_all=True, verbose=False, type_k=kept, type_v=kept, **options
    )
    if orders is not None:
        watch(model, orders)
    logits = []
    for begin in range(0, len(ids), WINDOW):
        window = ids[begin : begin + WINDOW]
        model.reset()
        model.eval(window)
        logits.append(torch.from_numpy(np.array(model.scores[: len(window)])))
    model.close()
    return torch.cat(logits)


def watch(model: Any, orders: dict[int, list[Tensor]]) -> None:
    """Fill `orders` from llama.cpp's evaluation callback, which its Python class does not offer."""
    ggml = llama_cpp.llama_cpp._lib
    ggml.ggml_get_name.restype = ctypes.c_char_p
    ggml.ggml_get_data.restype = ctypes.c_void_p
    ggml.ggml_nbytes.restype = ctypes.c_size_t

    @llama_cpp.ggml_backend_sched_eval_callback
    def evaluated(address: int, asking: bool, _: Any) -> bool:
        tensor = ctypes.c_void_p(address)
        name = ggml.ggml_get_name(tensor).decode()
        if not asking and name.startswith(ORDER):
            raw = ctypes.string_at(ggml.ggml_get_data(tensor), ggml.ggml_nbytes(tensor))
            order = torch.frombuffer(bytearray(raw), dtype=torch.int32).long()
            orders.setdefault(int(name.removeprefix(ORDER)), []).append(order)
        return not asking or name.startswith(ORDER)

    model.context_params.cb_eval = evaluated
    model._ctx.close()
    model._ctx = LlamaContext(model=model._model, params=model.context_params, verbose=False)


def agreement_percent(one: Tensor, other: Tensor) -> float:
    """Of two models' logits [tokens, vocabulary]: in how many rows the same one is largest."""
    return round(100 * (one.argmax(dim=1) == other.argmax(dim=1)).double().mean().item(), 2)


def mean_divergence(expected: Tensor, found: Tensor) -> float:
    """The mean KL divergence, in nats, of `found` from `expected`, logits [tokens, vocabulary]."""
    total = 0.0
    for rows in zip(expected.split(WINDOW), found.split(WINDOW), strict=True):
        p, q = (logits.double().log_softmax(dim=1) for logits in rows)
        total += float((p.exp() * (p - q)).sum())
    return round(total / len(expected), 6)


def follow(router: torch.nn.Module, order: Tensor, top_k: int) -> None:
    """Make a router, one that weights by a softmax over its choice, choose the first of `order` [tokens, experts]."""
    rows = iter(order[:, :top_k])

    def choose(_router: Any, _inputs: Any, routed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        logits = routed[0]
        chosen = torch.stack(list(islice(rows, len(logits))))
        return logits, logits.gather(1, chosen).softmax(dim=1), chosen

    router.register_forward_hook(choose)


def nudge(_embedding: Any, _inputs: Any, values: Tensor) -> Tensor:
    """The smallest change there is: every value one unit in the last place higher."""
    return values.nextafter(torch.tensor(torch.inf))


def dali_logits(
    file: Path,
    ids: list[int],
    kernels: str = "",
    orders: Mapping[int, list[Tensor]] | None = None,
    nudged: bool = False,
) -> Tensor:
    """dali's logits, as `llama_logits`. kernels: "" for the compiled ones, "torch" for the reference. orders: as llama.cpp's
    experts were, to choose the same ones."""
    os.environ[native.VARIABLE] = kernels
    model = dali.load(file, dtype="float32")
    decoder = model.engine.model
    for layer, pieces in (orders or {}).items():
        order = torch.cat(pieces).view(len(ids), -1)
        follow(decoder.model.layers[layer].mlp.gate, order, decoder.config.num_experts_per_tok)
    if nudged:
        decoder.get_input_embeddings().register_forward_hook(nudge)
    windows = [ids[begin : begin + WINDOW] for begin in range(0, len(ids), WINDOW)]
    return torch.cat([logits for window in windows for logits in model.engine.score(model.sequence(window))])


def compare(file: Path, tokens: int) -> dict[str, float]:
    """Agreement, in percent, and divergence on the first `tokens` tokens of the text."""
    text = TEXT.read_text()
    ids = dali.load(file).encode(text)[:tokens]
    vocabulary = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    same = vocabulary.tokenize(text.encode(), add_bos=False)[:tokens] == ids
    vocabulary.close()
    assert same, "both must read the same tokens"
    orders: dict[int, list[Tensor]] = {}
    found, expected = dali_logits(file, ids), llama_logits(file, ids, orders)
    held = dali_logits(file, ids, orders=orders)
    row = {
        "tokens": len(ids),
        "agreement_percent": agreement_percent(expected, found),
        "target_percent": TARGET_PERCENT,
        "mean_kl": mean_divergence(expected, found),
        "routes_held": agreement_percent(expected, held),
        "routes_held_kl": mean_divergence(expected, held),
        "dali_nudged": agreement_percent(found, dali_logits(file, ids, nudged=True)),
        "llama_cpp_token_by_token": agreement_percent(expected, llama_logits(file, ids, n_ubatch=1)),
        "llama_cpp_flash_attention": agreement_percent(expected, llama_logits(file, ids, flash_attn=True)),
    }
    exact = dali_logits(file, ids, "torch")
    return row | {
        "dali_with_exact": agreement_percent(exact, found),
        "llama_cpp_with_exact": agreement_percent(exact, expected),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["dali-tiny", "smollm2-moe"])
    parser.add_argument("--types", nargs="+", default=["F32", "F16", "Q8_0", "Q4_0"])
    parser.add_argument("--tokens", type=int, default=2000)
    options = parser.parse_args()
    if llama_cpp is None:
        parser.error("llama.cpp's Python package is not here: pip install llama-cpp-python")
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
    report.write("agreement", rows, keys_and_values="float32", llama_cpp_python=llama_cpp.__version__)


if __name__ == "__main__":
    main()
