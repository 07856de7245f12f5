"""A random model in OLMoE-1B-7B's shape as GGUF, for measuring speed (benchmarks/models/vs_llama_cpp.py, gguf_load.py,
gguf_types.py).

    python benchmarks/tools/random_gguf.py {Q4_0|Q8_0|Q4_K|...} OUT.gguf [--layers N]

The architecture is qwen3moe, as that has no weights beyond what speed depends on. All layers share one drawn block of experts,
rolled: routing differs, and so do the bytes at any address. Matrices in Q4_0 and Q8_0 are quantized noise, those of other types
random blocks (random_blocks.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

try:
    import gguf
    from gguf import GGMLQuantizationType as Type
except ModuleNotFoundError:
    raise SystemExit("This needs the gguf package.\nInstall it: pip install gguf.") from None

from random_blocks import BLOCKS, random_blocks

LAYERS, EXPERTS, TOP_K, HIDDEN, INTERMEDIATE, VOCABULARY, HEADS = 16, 64, 8, 2048, 1024, 50304, 16
HEAD = HIDDEN // HEADS
DEVIATION = 0.02  # of the matrices
QUANTIZED = ("Q4_0", "Q8_0", "F32")  # noise of these types is


def write_random(path: Path, kind: Type, layers: int = LAYERS) -> None:
    """Write the model with all matrices but routers in `kind`; never more than two layers' tensors in memory."""
    temporary = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN3MOE])
    _metadata(writer, kind, layers)
    for name, (shape, type) in _shapes(kind, layers).items():
        bytes_shape = gguf.quant_shape_to_byte_shape(shape, type)
        nbytes = int(np.prod(bytes_shape))
        writer.add_tensor_info(name, bytes_shape, np.dtype(np.uint8), nbytes, raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in _tensors(kind, layers):
        writer.write_tensor_data(tensor)
    writer.close()
    temporary.rename(path)


def token_bytes(kind: Type, layers: int) -> float:
    """Bytes of the weights that a token meets: without the embeddings, and of the experts those it is routed to."""

    def size(name: str, shape: Shape, type: Type) -> float:
        share = TOP_K / EXPERTS if "_exps" in name else 1
        return share * int(np.prod(gguf.quant_shape_to_byte_shape(shape, type)))

    shapes = _shapes(kind, layers)
    del shapes["token_embd.weight"]
    return sum(size(name, *what) for name, what in shapes.items())


def _metadata(writer: gguf.GGUFWriter, kind: Type, layers: int) -> None:
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(TOP_K)
    writer.add_expert_feed_forward_length(INTERMEDIATE)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(next(t for t in gguf.LlamaFileType if t.name.startswith(f"MOSTLY_{kind.name}")))
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    tokens += [f"▁{number}" for number in range(len(tokens), VOCABULARY)]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(VOCABULARY)])
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (VOCABULARY - len(kinds)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


Shape = tuple[int, ...]


def _shapes(kind: Type, layers: int) -> dict[str, tuple[Shape, Type]]:
    shapes: dict[str, tuple[Shape, Type]] = {
        "token_embd.weight": ((VOCABULARY, HIDDEN), kind),
        "output.weight": ((VOCABULARY, HIDDEN), kind),
        "output_norm.weight": ((HIDDEN,), Type.F32),
    }
    for layer in range(layers):
        block = {
            **{f"{name}_norm": ((HIDDEN,), Type.F32) for name in ("attn", "ffn")},
            **{f"attn_{name}_norm": ((HEAD,), Type.F32) for name in "qk"},
            **{f"attn_{name}": ((HIDDEN, HIDDEN), kind) for name in ("q", "k", "v", "output")},
            "ffn_gate_inp": ((EXPERTS, HIDDEN), Type.F32),
            **{f"ffn_{name}_exps": ((EXPERTS, INTERMEDIATE, HIDDEN), kind) for name in ("gate", "up")},
            "ffn_down_exps": ((EXPERTS, HIDDEN, INTERMEDIATE), kind),
        }
        shapes |= {f"blk.{layer}.{name}.weight": value for name, value in block.items()}
    return shapes


def _tensors(kind: Type, layers: int) -> Iterator[np.ndarray]:
    """Each of _shapes, in its order."""
    generator = np.random.default_rng(0)
    experts: dict[Shape, np.ndarray] = {}
    for number, (name, (shape, type)) in enumerate(_shapes(kind, layers).items()):
        if "_exps" in name:
            if shape not in experts:
                experts[shape] = _matrices(generator, shape, type)
            yield np.roll(experts[shape], number, axis=0)
        elif "norm" in name:
            yield np.ones(shape, dtype=np.float32)
        else:
            yield _matrices(generator, shape, type)


def _matrices(generator: np.random.Generator, shape: Shape, type: Type) -> np.ndarray:
    if type.name in QUANTIZED:
        return gguf.quants.quantize(_noise(generator, shape), type)
    *rows, columns = shape
    return random_blocks(type.name, int(np.prod(rows)), columns, generator).reshape(*rows, -1)


def _noise(generator: np.random.Generator, shape: Shape) -> np.ndarray:
    return generator.standard_normal(shape, dtype=np.float32) * np.float32(DEVIATION)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("type", choices=list(BLOCKS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=LAYERS)
    options = parser.parse_args()
    write_random(options.out, Type[options.type], options.layers)
    print(f"{options.out}: {options.out.stat().st_size / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
