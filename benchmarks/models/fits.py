"""Which models fit which PC, and how fast they would decode there. Computed from sizes, not measured.

Sizes are those dali itself reckons with: a model of the published configuration is built on meta, without memory, its experts
are laid out in a packed format, and its linears as `w8`. `memory_gib` is the free memory that loading asks for, 1 GiB of working
room included; `pc_gib` is the smallest usual memory of a PC that leaves 2 GiB to the rest. Every token reads its routed experts
and all dense weights but the embeddings. `bound` is the speed at which these bytes are read without a pause, at 80 % of the wire
rate of two memory channels (an assumption; the hardware profiles name its sources). `expected` is the share of that bound which
decode_roofline.json measured in OLMoE-1B-7B's shape; no whole model was measured with mxfp4.

    python benchmarks/models/fits.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import GptOssConfig, MixtralConfig, OlmoeConfig, Qwen3MoeConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.fused.dense import linears_of
from dali.hooks import seam
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import get_format
from dali.loading.budget import count_dense_bytes
from dali.loading.room import HEADROOM
from dali.loading.skeleton import build_skeleton

# From each model's published config.json; whatever is not named is the configuration class's default.
MODELS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "OLMoE-1B-7B": (
        OlmoeConfig(
            vocab_size=50304,
            hidden_size=2048,
            intermediate_size=1024,
            num_hidden_layers=16,
            num_attention_heads=16,
            num_key_value_heads=16,
            num_experts=64,
            num_experts_per_tok=8,
            tie_word_embeddings=False,
        ),
        ("w8", "w4"),
    ),
    "gpt-oss-20b": (
        GptOssConfig(
            vocab_size=201088,
            hidden_size=2880,
            intermediate_size=2880,
            num_hidden_layers=24,
            num_attention_heads=64,
            num_key_value_heads=8,
            head_dim=64,
            num_local_experts=32,
            num_experts_per_tok=4,
            tie_word_embeddings=False,
        ),
        ("mxfp4",),
    ),
    "Qwen3-30B-A3B": (
        Qwen3MoeConfig(
            vocab_size=151936,
            hidden_size=2048,
            moe_intermediate_size=768,
            num_hidden_layers=48,
            num_attention_heads=32,
            num_key_value_heads=4,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            tie_word_embeddings=False,
        ),
        ("w8", "w4"),
    ),
    "Mixtral-8x7B": (
        MixtralConfig(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            num_local_experts=8,
            num_experts_per_tok=2,
            tie_word_embeddings=False,
        ),
        ("w4",),
    ),
}
WIRE_RATES = {"ddr4_3200": 51.2e9, "ddr5_5600": 89.6e9}  # two channels of 8 bytes
READ_SHARE = 0.8  # as the hardware profiles have it
PC_GIB = (8, 16, 24, 32, 48, 64, 96)
SYSTEM_GIB = 2
DTYPE = torch.bfloat16  # as all of them are published


def measured_shares() -> dict[str, float]:
    """Format -> share of the read bandwidth that decoding a whole model reached."""
    results = json.loads((report.BENCHMARKS / "results" / "decode_roofline.json").read_text("utf-8"))
    return {row["experts"]: row["roofline_percent"] / 100 for row in results["rows"]}


def sizes(config: Any, quant: str) -> tuple[int, int]:
    """Bytes of free memory that loading asks for, and bytes that a token reads."""
    model = build_skeleton(config, Path(config.model_type))
    modules = seam.describe_model(model, config.model_type)
    layout = ExpertLayout(modules[0].shape, get_format(quant))
    dense = count_dense_bytes(model, DTYPE)
    memory = sum(module.experts for module in modules) * layout.record_bytes + dense + HEADROOM
    routed = len(modules) * config.num_experts_per_tok * layout.record_bytes
    return memory, routed + dense_token_bytes(model)


def dense_token_bytes(model: Any) -> int:
    """What a token reads beside experts: linears packed to w8, routers, norms and biases as they are."""
    linears = linears_of(model)
    packed = {id(linear.weight) for linear in linears.values()}
    experts = {id(p) for module in seam.experts_modules(model).values() for p in module.parameters()}
    embeddings = id(model.get_input_embeddings().weight)
    others = [p for p in model.parameters() if id(p) not in packed | experts | {embeddings}]
    w8 = get_format("w8")
    return sum(w8.matrix_bytes(linear.out_features, linear.in_features) for linear in linears.values()) + sum(
        p.numel() * DTYPE.itemsize for p in others
    )


def rows() -> list[dict[str, Any]]:
    shares, found = measured_shares(), []
    for name, (config, quants) in MODELS.items():
        for quant in quants:
            memory, token = sizes(config, quant)
            row: dict[str, Any] = {"model": name, "experts": quant, "memory_gib": round(memory / 2**30, 1)}
            row["pc_gib"] = next(size for size in PC_GIB if memory <= (size - SYSTEM_GIB) * 2**30)
            row["gb_per_token"] = round(token / 1e9, 2)
            for memory_kind, rate in WIRE_RATES.items():
                bound = READ_SHARE * rate / token
                row[f"bound_{memory_kind}"] = round(bound, 1)
                row[f"expected_{memory_kind}"] = round(bound * shares[quant], 1) if quant in shares else None
            found.append(row)
    return found


if __name__ == "__main__":
    computed = rows()
    report.table(computed)
    report.write("fits", computed, read_share=READ_SHARE, system_gib=SYSTEM_GIB, shares=measured_shares())
