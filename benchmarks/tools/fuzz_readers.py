"""Feeds damaged files to the readers of GGUF files and of expert stores; each must be refused with a clear error or read.

    python benchmarks/tools/fuzz_readers.py [--inputs N] [--seed S]

Valid files are damaged at random: bits flipped, numbers overwritten by extremes, slices cut, doubled, swapped, the end lost;
mostly in the header. Anything but a DaliError or a whole result counts as a failure, as does taking longer than a few seconds
or more memory than a few gigabytes; the script then stops and names the input's seed.
"""

from __future__ import annotations

import argparse
import contextlib
import lzma
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import torch
from gguf import GGMLQuantizationType as Type
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import report
from dali.errors import DaliError
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape, ExpertWeights
from dali.kernels.formats import get_format
from dali.loading.gguf.tokenizer import read_tokenizer
from dali.store.gguf.header import read_gguf
from dali.store.packed.builder import build
from dali.store.packed.header import StoreHeader
from dali.store.packed.reader import StoreReader
from export_gguf import encode_as, write_gguf
from tiny_architectures import Unstepped

SECONDS = 20
CONVERTED = Path(__file__).parents[2] / "tests" / "loading" / "gguf" / "converted"
MEMORY = 6 * 2**30  # above what is in use when the inputs begin
EXTREMES = [0, 1, 2, 31, 32, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**61, 2**63 - 1, 2**63, 2**64 - 1]
TINY = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "qwen3_moe": {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    "deepseek_v2": {
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "q_lora_rank": None,
        "kv_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 12,
        "num_key_value_heads": 4,
        "n_group": 1,
        "topk_group": 1,
    },
}


class TooSlow(BaseException):
    """Not an Exception, so that no reader can take it for damage."""


def gguf_bytes(family: str, folder: Path) -> bytes:
    config = CONFIG_MAPPING[family](**(TINY | FAMILIES[family]))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *letters, "ab"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, [("a", "b")])), bos_token="<s>", eos_token="</s>"
    )
    return write_gguf(model, tokenizer, folder / "sample.gguf", encode_as(Type.Q8_0)).read_bytes()


def store_bytes(folder: Path) -> bytes:
    layout = ExpertLayout(ExpertShape(64, 32, Activation("silu")), get_format("w8"))
    header = StoreHeader("sample", "fingerprint", 2, 4, layout)

    class Experts:
        def read(self, layer: int, expert: int) -> ExpertWeights:
            return ExpertWeights(torch.randn(32, 64), torch.randn(32, 64), torch.randn(64, 32))

    build(folder / "sample.safetensors", header, Experts(), lambda nbytes: None)
    return (folder / "sample.safetensors").read_bytes()


def damage(content: bytes, header: int, random: Random, gently: bool) -> bytes:
    """`content` with up to three injuries, most of them in its first `header` bytes; gently: one, that leaves its length."""
    out = bytearray(content)
    for _ in range(1 if gently else random.randint(1, 3)):
        end = min(header if random.random() < 0.85 else len(out), len(out))
        where = random.randrange(max(end, 1))
        kind = random.randrange(3 if gently else 6)
        if kind == 0:
            for _ in range(random.randint(1, 8)):
                out[random.randrange(max(end, 1)) % max(len(out), 1)] ^= 1 << random.randrange(8)
        elif kind in (1, 2):
            width = random.choice((1, 2, 4, 8))
            out[where : where + width] = (random.choice(EXTREMES) % 2 ** (8 * width)).to_bytes(
                width, "little"
            )
        elif kind == 3:
            del out[where : where + random.randint(1, 64)]
        elif kind == 4:
            out[where:where] = out[where : where + random.randint(1, 64)]
        else:
            del out[random.randrange(max(len(out), 1)) :]
        if not out:
            return b""
    return bytes(out)


def read_model(path: Path) -> None:
    """All that loading does with a GGUF file's own bytes."""
    model = Unstepped(path)
    read_tokenizer(model.gguf)
    model.read(model.experts.layouts(None), torch.float32, False, lambda nbytes: None)


def read_store(path: Path) -> None:
    with StoreReader(path) as reader:
        reader.read_all()


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Processor time for one input."""

    def too_slow(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGPROF, too_slow)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--inputs",
        type=int,
        default=20_000,
        help="for each header; a quarter for whole models, a twentieth for each converted one",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        targets: list[tuple[str, bytes, int, Callable[[Path], object], int]] = [
            ("store", store_bytes(folder), 4096, read_store, options.inputs)
        ]
        for family in FAMILIES:
            content = gguf_bytes(family, folder)
            header = min(tensor.offset for tensor in read_gguf(folder / "sample.gguf").tensors.values())
            targets.append((f"gguf header, {family}", content, header, read_gguf, options.inputs))
            targets.append((f"gguf model, {family}", content, header, read_model, options.inputs // 4))
        for file in sorted(CONVERTED.glob("*.gguf.xz")):
            content = lzma.decompress(file.read_bytes())
            (folder / "sample.gguf").write_bytes(content)
            header = min(tensor.offset for tensor in read_gguf(folder / "sample.gguf").tensors.values())
            name = f"gguf model, {file.name.removesuffix('.gguf.xz')} as converted"
            targets.append((name, content, header, read_model, options.inputs // 20))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
        rows = [run(*target, options.seed, folder / "input.gguf") for target in targets]
    report.table(rows)
    report.write("fuzz_readers", rows, seed=options.seed, seconds_allowed=SECONDS, memory_allowed=MEMORY)


def run(
    name: str, content: bytes, header: int, read: Callable[[Path], object], inputs: int, seed: int, path: Path
) -> dict[str, object]:
    read_whole(read, content, path)
    refused, began = 0, time.monotonic()
    for number in range(inputs):
        path.write_bytes(damage(content, header, Random(f"{seed} {name} {number}"), "model" in name))
        try:
            with limits():
                read(path)
        except DaliError as error:
            refused += 1
            if str(path) in error.problem:
                continue
            raise SystemExit(
                f"FAILED: {name}, input {number}: {error.problem} does not name the file"
            ) from None
        except BaseException:
            traceback.print_exc()
            raise SystemExit(f"FAILED: {name}, input {number} of seed {seed}") from None
    seconds = round(time.monotonic() - began, 1)
    return {
        "reader": name,
        "inputs": inputs,
        "refused": refused,
        "read": inputs - refused,
        "failed": 0,
        "seconds": seconds,
    }


def read_whole(read: Callable[[Path], object], content: bytes, path: Path) -> None:
    """The undamaged file must be read, or the counts would say nothing."""
    path.write_bytes(content)
    read(path)


if __name__ == "__main__":
    main()
