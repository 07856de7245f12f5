"""What the benchmarks of GGUF's types are made of: random blocks, wide checkpoints, and the rows of their tables."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig

from dali.kernels import native
from dali.kernels.formats import FORMATS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZES = {
    "vocab_size": 40, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 32, "num_experts_per_tok": 2,
}  # fmt: skip
CONFIGS = {
    "mixtral": MixtralConfig(intermediate_size=32, num_local_experts=4, tie_word_embeddings=False, **SIZES),
    "qwen3_moe": Qwen3MoeConfig(
        moe_intermediate_size=32, num_experts=4, norm_topk_prob=True, tie_word_embeddings=True, **SIZES
    ),
}


@pytest.fixture
def scripts(monkeypatch):
    for folder in ("tools", "models", "kernels"):
        monkeypatch.syspath_prepend(str(BENCHMARKS / folder))
    return import_module


@pytest.mark.parametrize("type", [name for name in gguf.GGMLQuantizationType.__members__ if name != "Q1_0"])
def test_random_blocks_are_like_weights(scripts, type):
    random_blocks = scripts("random_blocks")
    kind = gguf.GGMLQuantizationType[type]
    if type not in random_blocks.BLOCKS:
        assert kind not in gguf.quants._type_traits or type == "BF16"  # no type of weights
        return
    raw = random_blocks.random_blocks(type, 16, 512, np.random.default_rng(0))
    values = gguf.quants.dequantize(raw, kind)
    assert values.shape == (16, 512)
    assert 0.015 < values.std() < 0.03
    assert abs(values.mean()) < 0.012


@pytest.mark.parametrize("family", CONFIGS)
def test_a_wide_checkpoint_computes_the_same(scripts, tmp_path, family):
    torch.manual_seed(0)
    narrow = AutoModelForCausalLM.from_config(CONFIGS[family]).eval()
    with torch.no_grad():
        for name, parameter in narrow.named_parameters():
            parameter.copy_(
                torch.rand_like(parameter) + 0.5 if "norm" in name else torch.randn_like(parameter) / 4
            )
    narrow.save_pretrained(tmp_path / "narrow")
    scripts("widen").widen(tmp_path / "narrow", tmp_path / "wide")
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "wide").eval()
    columns = {m.weight.shape[1] % 256 for m in wide.modules() if isinstance(m, torch.nn.Linear)}
    assert columns == {0}
    ids = torch.randint(40, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(wide(ids).logits, narrow(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_excess_of_a_perplexity_has_its_windows_error(scripts):
    excess = scripts("gguf_perplexity").excess
    base = [1.0, 2.0, 3.0, 4.0]
    percent, error = excess([1.1, 2.1, 3.1, 4.1], base)
    assert (percent, error) == (pytest.approx(10.517, abs=1e-3), pytest.approx(0, abs=1e-9))
    percent, error = excess([1.1, 1.9, 3.1, 3.9], base)
    assert percent == pytest.approx(0)
    assert error == pytest.approx(100 * 0.11547 / 2, rel=1e-4)  # the standard deviation, of four


def test_a_new_row_takes_the_place_of_the_same_file(scripts):
    rows = [{"model": "a", "file": "Q4_0", "dali": 1}, {"model": "b", "file": "Q4_0", "dali": 1}]
    assert scripts("gguf_perplexity").others(rows, {"model": "b", "file": "Q4_0", "dali": 2}) == rows[:1]


def test_rows_of_types_are_medians_of_rounds(scripts):
    rounds = [
        {
            "dali": {
                "tg64": ours, "pp512": 300, "read_gb": 30, "gb_per_token": 0.6, "roofline": 2 * ours, "others_percent": 1,
            },
            "llama_cpp": {"tg64": 20, "pp512": 100, "others_percent": 2},
        }
        for ours in (30, 40, 50)
    ]  # fmt: skip
    row = scripts("gguf_types").row("Q6_K", 5e8, rounds)  # 0.5 GB a token at 30 GB/s: 60 tokens a second
    assert row == {
        "type": "Q6_K", "dali_tg64": 40, "llama_cpp_tg64": 20, "ratio_tg64": 2, "dali_pp512": 300, "llama_cpp_pp512": 100,
        "ratio_pp512": 3, "most_possible": 3, "read": 30, "dali_roofline_percent": 80, "llama_cpp_roofline_percent": 33.3,
        "gb_per_token": 0.6, "stored": 1.2, "others_percent": 2, "rounds": 3, "note": "",
    }  # fmt: skip


def test_a_token_meets_its_experts_and_everything_else(scripts):
    random_gguf = scripts("random_gguf")
    attention, expert, head = 4 * 2048 * 2048, 3 * 2048 * 1024, 50304 * 2048
    floats = 4 * (64 * 2048 + 2 * 2048 + 2 * 128)  # router and norms
    expected = (2 * (attention + 8 * expert) + head) * 18 / 32 + 2 * floats + 4 * 2048
    assert random_gguf.token_bytes(random_gguf.Type.Q4_0, 2) == expected


@pytest.mark.skipif(not native.AVAILABLE, reason="not compiled")
@pytest.mark.parametrize("format", ["bf16", "q4k"])
def test_the_expert_kernel_is_measured_cold_and_hot(scripts, monkeypatch, format):
    script = scripts("expert_kernel")
    for name, value in {"COLD": script.HOT, "POOL": 2**23, "READ": 2**20}.items():
        monkeypatch.setattr(script, name, value)
    variant, threads = native.variant(), native.threads()
    try:
        rows = script.measure(variant, FORMATS[format], [1], ["8 x 1"], 0)
    finally:
        native.set_threads(threads)
    assert [row["experts x tokens"] for row in rows] == ["8 x 1", "hot"]
    assert all(row["us"] > 0 and row["format"] == format for row in rows)
    json.dumps(rows)


@pytest.mark.parametrize(
    ("format", "type"), [("w4", "Q4_0"), ("q4k", "Q4_K"), ("mxfp4", "MXFP4"), ("iq3_xxs", "IQ3_XXS")]
)
def test_a_format_finds_its_type(scripts, format, type):
    found = scripts("expert_kernel").type_of(FORMATS["q4k"].__class__(format, 4))
    assert found == type
    assert found in scripts("random_blocks").BLOCKS
