"""Files whose parts do not fit one another: the error names the key or the tensor, before weights are read."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import dali
from dali.errors import DaliError
from gguf_models import rewrite
from tiny_architectures import TINY, Unstepped

RECURRENT = "attention.recurrent_layers"
FILES = Path(__file__).parent / "converted"


@pytest.fixture
def converted(tmp_path):
    def write(name: str) -> Path:
        if not set(TINY[name][0].split("/")) <= set(CONFIG_MAPPING):
            pytest.skip(f"transformers {transformers.__version__} has no {TINY[name][0]}")
        path = tmp_path / "m.gguf"
        path.write_bytes(lzma.decompress((FILES / f"{name}.gguf.xz").read_bytes()))
        return path

    return write


def refusal(path: Path) -> str:
    with pytest.raises(DaliError) as error:
        _ = Unstepped(path).dense
    assert str(path) in error.value.problem
    return error.value.problem


@pytest.mark.parametrize(
    ("name", "keys", "problem"),
    [
        ("qwen35moe", {"ssm.time_step_rank": 3}, "ssm.time_step_rank is 3, of 3 heads and an inner size of 128"),
        ("qwen35moe", {"ssm.group_count": 3}, "ssm.group_count is 3, of 4 heads"),
        ("qwen35moe", {"ssm.group_count": 0}, "ssm.group_count is 0"),
        ("qwen35moe", {"ssm.inner_size": 64}, "blk.0.ssm_conv1d.weight is [256, 4], its metadata says [192, 1, 4]"),
        ("qwen35moe", {RECURRENT: None, "full_attention_interval": 0}, "full_attention_interval is 0, of 4 layers"),
        ("qwen35moe", {RECURRENT: None, "full_attention_interval": 7}, "full_attention_interval is 7, of 4 layers"),
        ("qwen35moe", {RECURRENT: None, "full_attention_interval": 2}, "has no place in a qwen3_5_moe_text model"),
        ("qwen35moe", {"attention.recurrent_layers": [True, True]}, "recurrent_layers is [True, True], for 4 layers"),
        ("qwen35moe", {"nextn_predict_layers": 5}, "its block_count is 5, and 5 of them predict tokens beyond the next one"),
        ("qwen35moe", {"rope.dimension_count": 99}, "rope.dimension_count is 99, of heads of 8"),
        ("lfm2moe", {"attention.head_count_kv": [0, 2]}, "attention.head_count_kv is [0, 2], for 3 layers"),
        ("lfm2moe", {"attention.head_count_kv": [2, 2, 0]}, "its tensor blk.0.shortconv"),
        ("granitemoe", {"attention.head_count": 5}, "its 5 attention heads do not divide its embedding_length 32"),
        ("granitemoe", {"attention.head_count": 32, "attention.head_count_kv": 16}, "heads in its metadata do not divide"),
        ("mimo2", {"attention.head_count_kv": [4, 3, 4, 4, 4, 4]}, "attn_k.weight is [96, 32], its metadata says [144, 32]"),
        ("laguna", {"attention.head_count": [4, 4, 4]}, "blk.1.attn_q.weight is [48, 32], its metadata says [32, 32]"),
        ("gemma4", {"attention.sliding_window_pattern": [True]}, "sliding_window_pattern is [True], for 3 layers"),
        ("glm4moe", {"expert_gating_func": 1}, "expert_gating_func is 1, and its models have 2"),
        ("cohere2moe", {"expert_gating_func": 9}, "expert_gating_func is 9"),
        ("deepseek2-v3", {"expert_gating_func": 9}, "routes in a way that dali does not know (expert_gating_func 9)"),
        ("deepseek2-v3", {"attention.value_length_mla": 7}, "blk.0.attn_v_b.weight is [4, 6, 12], its metadata says [4, 7, 12]"),
    ],
)  # fmt: skip
def test_metadata(name, keys, problem, converted):
    path = converted(name)
    architecture = name.partition("-v3")[0]
    rewrite(path, {f"{architecture}.{key}": value for key, value in keys.items()})
    assert problem in refusal(path)


def without(part):
    return lambda name, values: [] if part in name else [(name, values)]


def twice(part, other):
    return lambda name, values: (
        [(name, values)] + ([(name.replace(part, other), values)] if part in name else [])
    )


def changed(part, change):
    return lambda name, values: [(name, change(values) if part in name else values)]


@pytest.mark.parametrize(
    ("name", "tensors", "problem"),
    [
        ("qwen35moe", without("blk.0.ssm_a"), "it has no tensor for model.layers.0.linear_attn."),
        ("qwen3next", without("blk.1.attn_gate"), "it has no tensor attn_gate.weight for model.layers.1.linear"),
        ("qwen3next", changed("blk.1.attn_gate", lambda v: v[:-1]), "the tensor blk.1.attn_gate.weight is [31, 32]"),
        ("granitehybrid", changed("blk.0.ssm_norm", lambda v: v[:, :-1]), "blk.0.ssm_norm.weight is [1, 63]"),
        ("granitemoe-shared", without("blk.2.ffn_gate_shexp"), "it has no tensor ffn_gate_shexp.weight for"),
        ("nemotron_h_moe", without("blk.1."), "it has tensors of 3 blocks"),
        ("nemotron_h_moe", without("blk.0.ssm_in"), "its block 0 has none of ssm_in, attn_q, ffn_gate_inp, ffn_up"),
        ("deepseek2-v3", twice("blk.1.attn_k_b", "blk.1.attn_kv_b"), "its tensor blk.1.attn_kv_b.weight has no place in"),
        ("deepseek2-v3", without("blk.1.exp_probs_b"), "it has no tensor for model.layers.1.mlp.gate.e_score_correction_bias"),
        ("hy_v3", twice("blk.1.exp_probs_b", "blk.1.exp_probs_b.bias"), "exp_probs_b and blk.1.exp_probs_b.bias are both"),
        ("gemma4", without("blk.0.ffn_down_exps.scale"), "it has no tensor for model.layers.0.router.per_expert_scale"),
        ("gemma4", changed("rope_freqs", lambda v: v[:3]), "the tensor rope_freqs.weight has 3 values"),
    ],
)  # fmt: skip
def test_tensors(name, tensors, problem, converted):
    path = converted(name)
    rewrite(path, tensors=tensors)
    assert problem in refusal(path)


def test_blocks_that_predict_ahead_alone(converted):
    def ahead(name, values):
        return [(name, values)] if not name.startswith("blk.") or name.startswith("blk.4.") else []

    assert "only blocks that predict tokens beyond the next one" in refusal(
        rewrite(converted("qwen35moe"), tensors=ahead)
    )


def test_blocks_that_predict_ahead_may_be_missing(converted):
    path = rewrite(converted("qwen35moe"), tensors=without("blk.4."))
    assert Unstepped(path).config.num_hidden_layers == 4
    _ = Unstepped(path).dense


def test_deepseeks_older_files_have_keys_and_values_together(converted):
    """Before 2025 the converter left kv_b whole."""
    halves = {}

    def whole(name, values):
        for one in ("attn_k_b", "attn_v_b"):
            if one in name:
                halves.setdefault(name.split(".")[1], {})[one] = values
        if "attn_k_b" in name:
            return []
        if "attn_v_b" not in name:
            return [(name, values)]
        both = halves[name.split(".")[1]]
        keys = both["attn_k_b"].swapaxes(1, 2)
        together = np.concatenate([keys, both["attn_v_b"]], axis=1).reshape(-1, keys.shape[-1])
        return [(name.replace("attn_v_b", "attn_kv_b"), together)]

    path = converted("deepseek2-v3")
    before = Unstepped(path).dense._shapes
    assert Unstepped(rewrite(path, tensors=whole)).dense._shapes == before


def test_a_family_that_transformers_lacks(converted, monkeypatch):
    monkeypatch.setattr("dali.loading.gguf.config.CONFIG_MAPPING", {})
    assert "is a qwen3_moe model, which transformers" in refusal(converted("qwen3moe"))


def test_decay_rates_that_would_grow(converted):
    """A model keeps the logarithm of what its file has as a negative number."""
    path = converted("qwen35moe")
    rewrite(path, tensors=lambda name, values: [(name, -values if name == "blk.1.ssm_a" else values)])
    with pytest.raises(
        DaliError, match=r"of its ssm_a, .*layers\.1\.linear_attn\.A_log has values that are NaN"
    ):
        dali.load(path)
