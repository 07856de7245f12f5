"""An OLMoE as GGUF whose tokens go where a trace says: each one's experts are chosen in advance, and so is the one that follows.

    python benchmarks/tools/walk_gguf.py {Q8_0|Q4_0} OUT.gguf TRACE.npz

For comparing programs on real routing without hooking into any. The residual has one value for each (layer, expert) pair, which
that expert's router reads, and the embedding of a token is 1 at the pairs it is to be routed to. What attention and experts add
is a thousandth of that, but for one thing: attention adds a constant a layer, which the embeddings take off in advance. So the
next layer's router, asked a layer early as programs that read ahead do, names but KNOWN of the experts that it then chooses.
The output matrix maps a token to the one that follows it, so that greedy decoding walks along.

Matrices are in the given type, embeddings and output in Q8_0, routers in F32; OLMoE-1B-7B's shape. All layers share one drawn
block of experts, rolled.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

try:
    import gguf
    from gguf import GGMLQuantizationType as Type
except ModuleNotFoundError:
    raise SystemExit("This needs the gguf package.\nInstall it: pip install gguf.") from None

KNOWN = 0.75  # of Qwen3-30B-A3B's experts the paper finds 0.776, of DeepSeek-V2-Lite's 0.726 (prefetch_accuracy.json)
DEVIATION = 0.02  # of the matrices
SCALE, CONSTANT, GAIN = (
    64.0,
    32.0,
    4.0,
)  # of embeddings beside what layers add; in units of it, what they all have; of routers
EPSILON = 1e-5
BLOCK = 32  # values of a quantized block
FIRST = 300  # token of the first walk, after bytes and letters

Ids = NDArray[np.integer]  # [tokens, layers, k] experts
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    layers: int = 16
    experts: int = 64
    top_k: int = 8
    hidden: int = 2048
    intermediate: int = 1024
    vocabulary: int = 50304
    heads: int = 16

    @property
    def pairs(self) -> int:
        return self.layers * self.experts

    @property
    def constant(self) -> int:
        """Where the residual has the value that all tokens share: alone in a block."""
        return -(-self.pairs // BLOCK) * BLOCK


def uniform(tokens: int, shape: Shape, seed: int) -> Ids:
    """Routing without favourites."""
    drawn = np.random.default_rng(seed).random((tokens, shape.layers, shape.experts))
    return np.argsort(drawn, axis=2)[..., : shape.top_k]


def tokens_of(walks: Sequence[Ids]) -> list[list[int]]:
    """The token of each of the walks' positions."""
    starts = np.cumsum([FIRST, *map(len, walks)])
    return [list(range(start, start + len(walk))) for start, walk in zip(starts, walks, strict=False)]


def write_walks(path: Path, kind: Type, walks: Sequence[Ids], shape: Shape = Shape()) -> None:
    """Write the model in which each of `walks`, [tokens, layers, top_k] of experts, is what greedy decoding follows."""
    assert shape.constant + BLOCK <= shape.hidden, "a router needs a value of the residual for each expert"
    wanted = np.concatenate([wanted_of(walk, shape) for walk in walks])
    assert len(np.unique(wanted, axis=0)) == len(wanted), (
        "two tokens with the same experts cannot be told apart"
    )
    temporary = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.OLMOE])
    _metadata(writer, kind, shape)
    for name, (size, type) in _shapes(kind, shape).items():
        bytes_shape = gguf.quant_shape_to_byte_shape(size, type)
        writer.add_tensor_info(
            name, bytes_shape, np.dtype(np.uint8), int(np.prod(bytes_shape)), raw_dtype=type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in _tensors(kind, shape, wanted, [len(walk) for walk in walks]):
        writer.write_tensor_data(np.ascontiguousarray(tensor))
    writer.close()
    temporary.rename(path)


def wanted_of(walk: Ids, shape: Shape) -> Floats:
    """[tokens, layers * experts], 1 at a token's experts."""
    assert walk.shape[1:] == (shape.layers, shape.top_k), f"a trace of {walk.shape[1:]} is none of {shape}"
    found = np.zeros((len(walk), shape.layers, shape.experts), np.float32)
    np.put_along_axis(found, walk.astype(np.int64), 1, axis=2)
    return found.reshape(len(walk), -1)


def known(wanted: Floats, added: Floats, shape: Shape) -> float:
    """The share of experts that routers name without what attention adds yet; nobody asks the first layer's."""
    early = (wanted - added).reshape(-1, shape.experts)
    named = np.argsort(-early, axis=1, kind="stable")[:, : shape.top_k]
    hits = np.take_along_axis(wanted.reshape(-1, shape.experts), named, 1).reshape(len(wanted), -1)
    return float(hits[:, shape.top_k :].mean())


def added_by_attention(wanted: Floats, shape: Shape) -> Floats:
    """[layers * experts]; as much as leaves KNOWN of the experts known a layer early."""
    noise = np.random.default_rng(2).standard_normal(shape.pairs).astype(np.float32)
    low, high = np.float32(0), np.float32(4)
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if known(wanted, noise * middle, shape) > KNOWN else (low, middle)
    return noise * low


def _metadata(writer: gguf.GGUFWriter, kind: Type, shape: Shape) -> None:
    writer.add_block_count(shape.layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_freq_base(10000.0)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.top_k)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(next(t for t in gguf.LlamaFileType if t.name.startswith(f"MOSTLY_{kind.name}")))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"0123456789"]
    tokens += [f"▁{number}" for number in range(len(tokens), shape.vocabulary)]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(shape.vocabulary)])
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (shape.vocabulary - len(kinds)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _shapes(kind: Type, shape: Shape) -> dict[str, tuple[tuple[int, ...], Type]]:
    hidden, wide, experts = shape.hidden, shape.intermediate, shape.experts
    shapes: dict[str, tuple[tuple[int, ...], Type]] = {
        "token_embd.weight": ((shape.vocabulary, hidden), Type.Q8_0),
        "output.weight": ((shape.vocabulary, hidden), Type.Q8_0),
        "output_norm.weight": ((hidden,), Type.F32),
    }
    for layer in range(shape.layers):
        block = {
            **{f"{name}_norm": ((hidden,), Type.F32) for name in ("attn", "ffn", "attn_q", "attn_k")},
            **{f"attn_{name}": ((hidden, hidden), kind) for name in ("q", "k", "v", "output")},
            "ffn_gate_inp": ((experts, hidden), Type.F32),
            **{f"ffn_{name}_exps": ((experts, wide, hidden), kind) for name in ("gate", "up")},
            "ffn_down_exps": ((experts, hidden, wide), kind),
        }
        shapes |= {f"blk.{layer}.{name}.weight": value for name, value in block.items()}
    return shapes


def _tensors(kind: Type, shape: Shape, wanted: Floats, lengths: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """Each of _shapes, in its order."""
    draw = np.random.default_rng(0)
    added = added_by_attention(wanted, shape)
    made = _embeddings(wanted, added, lengths, shape) | _layers(wanted, added, shape)
    drawn: dict[tuple[int, ...], NDArray[np.uint8]] = {}
    for number, (name, (size, type)) in enumerate(_shapes(kind, shape).items()):
        if "norm" in name:
            yield np.ones(size, np.float32)
        elif name in made:
            yield gguf.quants.quantize(made.pop(name), type)
        else:
            if size not in drawn:
                noise = draw.standard_normal(size, np.float32) * np.float32(DEVIATION)
                drawn[size] = gguf.quants.quantize(noise, type)
            yield np.roll(drawn[size], number, axis=0)


def _embeddings(
    wanted: Floats, added: Floats, lengths: Sequence[int], shape: Shape
) -> dict[str, NDArray[np.float32]]:
    """Of tokens, and the output matrix: the last of a walk goes on with its first."""
    at = slice(FIRST, FIRST + len(wanted))
    inputs = np.zeros((shape.vocabulary, shape.hidden), np.float32)
    inputs[at, : shape.pairs] = SCALE * (wanted - added)
    inputs[:, shape.constant] = SCALE * CONSTANT
    outputs = np.zeros_like(inputs)
    numbers = np.arange(len(wanted))
    walks = np.split(numbers, np.cumsum(lengths)[:-1])
    following = np.concatenate([np.roll(walk, -1) for walk in walks])
    outputs[FIRST + following, : shape.pairs] = wanted
    return {"token_embd.weight": inputs, "output.weight": outputs}


def _layers(wanted: Floats, added: Floats, shape: Shape) -> dict[str, NDArray[np.float32]]:
    """Routers, and the values and outputs of attention, which hold one number each: the constant, and what becomes of it."""
    made: dict[str, NDArray[np.float32]] = {}
    for layer in range(shape.layers):
        router = np.zeros((shape.experts, shape.hidden), np.float32)
        own = slice(layer * shape.experts, (layer + 1) * shape.experts)
        router[:, own] = GAIN * np.eye(shape.experts, dtype=np.float32)
        value, out = (np.zeros((shape.hidden, shape.hidden), np.float32) for _ in range(2))
        value[0, shape.constant] = 1
        before = wanted - np.where(np.arange(shape.pairs) < own.start, 0, added)
        square = CONSTANT**2 + float((before**2).sum(axis=1).mean())
        out[own, 0] = SCALE * added[own] * np.sqrt(square / shape.hidden) / CONSTANT
        names = {"ffn_gate_inp": router, "attn_v": value, "attn_output": out}
        made |= {f"blk.{layer}.{name}.weight": matrix for name, matrix in names.items()}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("type", choices=["Q8_0", "Q4_0"])
    parser.add_argument("out", type=Path)
    parser.add_argument("trace", type=Path)
    options = parser.parse_args()
    write_walks(options.out, Type[options.type], [np.load(options.trace)["ids"]])
    print(f"{options.out}: {options.out.stat().st_size / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
