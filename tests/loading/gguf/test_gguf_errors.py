"""GGUF files that are sound as such and make no model: the error names the key or the tensor, before weights are read."""

from __future__ import annotations

import shutil

import gguf
import numpy as np
import pytest

import dali
from dali.errors import DaliError
from gguf_models import gguf_model, rewrite, save_gguf

UINT32, INT32, UINT64, FLOAT32, STRING = (
    gguf.GGUFValueType[name] for name in ("UINT32", "INT32", "UINT64", "FLOAT32", "STRING")
)


@pytest.fixture(scope="module", params=["qwen3_moe"])
def saved(request, tmp_path_factory):
    return save_gguf(gguf_model(request.param), tmp_path_factory.mktemp("saved") / "m.gguf")


@pytest.fixture
def path(saved, tmp_path):
    return shutil.copy(saved, tmp_path / "m.gguf")


def refusal(path) -> str:
    with pytest.raises(DaliError) as error:
        dali.load(path)
    assert str(path) in error.value.problem
    return error.value.problem


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"general.architecture": "gemma"}, "is a 'gemma' model, which dali cannot read"),
        ({"qwen3moe.expert_count": None}, "is not a Mixture-of-Experts model: its qwen3moe metadata counts no experts"),
        ({"qwen3moe.expert_count": 0}, "is not a Mixture-of-Experts model"),
        ({"qwen3moe.expert_count": 7}, r"ffn_gate_exps.weight is [8, 40, 64], its metadata says [7, 40, 64]"),
        ({"qwen3moe.expert_count": 2**32 - 1}, "its metadata says [4294967295, 40, 64]"),
        ({"qwen3moe.expert_used_count": 9}, "its expert_used_count is 9, of 8 experts"),
        ({"qwen3moe.block_count": 2**31}, "its block_count is 2147483648, and it has tensors of 3 blocks"),
        ({"qwen3moe.block_count": 2}, "its block_count is 2, and it has tensors of 3 blocks"),
        ({"qwen3moe.embedding_length": None}, "it lacks the key qwen3moe.embedding_length"),
        ({"qwen3moe.embedding_length": 32}, "ffn_gate_exps.weight is [8, 40, 64], its metadata says [8, 40, 32]"),
        ({"qwen3moe.attention.head_count": 0}, "m.gguf"),
        ({"qwen3moe.attention.head_count": 8}, "attn_q.weight is [64, 64], its metadata says [128, 64]"),
        ({"qwen3moe.attention.key_length": 2**31}, "m.gguf"),
        ({"qwen3moe.rope.freq_base": float("nan")}, "its key qwen3moe.rope.freq_base is nan"),
        ({"tokenizer.ggml.tokens": None}, "it lacks the key tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.merges": None}, "it lacks the key tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["no such"]}, "its tokenizer is damaged"),
        ({"tokenizer.ggml.model": "rwkv"}, "has a 'rwkv' tokenizer, which dali cannot read"),
        ({"tokenizer.ggml.pre": "unheard-of"}, "splits text as 'unheard-of', which dali does not know"),
        ({"tokenizer.ggml.tokens": [f"t{i}" for i in range(98)]}, "it has 98 tokens, and embeddings of 97"),
    ],
)  # fmt: skip
def test_metadata(path, keys, problem):
    assert problem in refusal(rewrite(path, keys))


@pytest.mark.parametrize(
    ("key", "value", "kind", "wrong"),
    [
        ("eos_token_id", 97, UINT32, "is 97, of 97 tokens"),
        ("padding_token_id", 2**32 - 1, UINT32, "is 4294967295, of 97 tokens"),
        ("bos_token_id", -1, INT32, "is -1, of 97 tokens"),
        ("unknown_token_id", "<unk>", STRING, "is '<unk>', not int"),
        ("eot_token_id", float("nan"), FLOAT32, "is nan, not int"),
        ("add_bos_token", 1, UINT32, "is 1, not bool"),
        ("token_type", 3, UINT32, "is 3, not list"),
    ],
)
def test_a_model_does_without_optional_metadata_that_cannot_be_meant(path, key, value, kind, wrong):
    key = f"tokenizer.ggml.{key}"
    rewrite(path, {key: None}, added={key: (value, kind)})
    notes: list[str] = []
    llm = dali.load(path, notify=notes.append)
    assert notes == [f"{path} is read without its key {key}, which {wrong}."]
    assert llm.generate("ab", max_tokens=2, temperature=0).tokens


@pytest.mark.parametrize(("value", "kind"), [(-1, INT32), (2**63, UINT64)])
@pytest.mark.parametrize("key", ["context_length", "attention.key_length"])
def test_sizes_that_none_can_be(path, key, value, kind):
    key = f"qwen3moe.{key}"
    rewrite(path, {key: None}, added={key: (value, kind)})
    assert f"its key {key} is {value}, which it cannot be" in refusal(path)


def test_texts_that_are_not_utf_8(path):
    content = path.read_bytes()
    template = b"{% for m in messages %}"
    assert content.count(template) == 1
    path.write_bytes(content.replace(template, b"\xff" + template[1:]))
    notes: list[str] = []
    llm = dali.load(path, notify=notes.append)
    assert llm.tokenizer.chat_template is None
    assert 'without its key tokenizer.chat_template, which is b"\\xff' in notes[0]
    path.write_bytes(content.replace(b"qwen3moe", b"qwen3mo\xff", 1))
    assert "its key general.architecture is b'qwen3mo\\xff', not str" in refusal(path)


def without(part):
    return lambda name, values: [] if part in name else [(name, values)]


def changed(part, change):
    return lambda name, values: [(name, change(values) if part in name else values)]


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        (without("blk.1.attn_q.w"), "it has no tensor for model.layers.1.self_attn.q_proj.weight"),
        (without("blk.2.ffn_down_exps"), "it lacks the tensor blk.2.ffn_down_exps.weight"),
        (without("token_embd"), "it lacks the tensor token_embd.weight"),
        (without("blk.2."), "its block_count is 3, and it has tensors of 2 blocks"),
        (changed("output_norm", lambda v: v[:32]), "the tensor output_norm.weight is [32]"),
        (changed("blk.0.ffn_gate_inp", lambda v: v[:4]), "blk.0.ffn_gate_inp.weight is [4, 64]"),
        (changed("blk.1.ffn_up_exps", lambda v: v[:, :32]), "blk.1.ffn_up_exps.weight is [8, 32, 64]"),
        (changed("blk.1.attn_k.w", lambda v: v[None]), None),
        (
            lambda name, values: [(name, values)] + ([("blk.0.extra.weight", values)] if name == "output_norm.weight" else []),
            "its tensor blk.0.extra.weight has no place in a qwen3_moe model",
        ),
    ],
)  # fmt: skip
def test_tensors(path, tensors, problem):
    rewrite(path, tensors=tensors)
    if problem is None:
        dali.load(path)  # a dimension of one more is no harm
    else:
        assert problem in refusal(path)


@pytest.mark.parametrize("scale", ["blk.1.attn_q.scale", "blk.1.ffn_down_exps.input_scale", "output.scale"])
def test_scales_of_whole_tensors(path, scale):
    """As llama.cpp's converter writes them beside tensors in NVFP4."""
    one = np.ones(1, dtype=np.float32)
    rewrite(
        path, tensors=lambda name, values: [(name, values)] + [(scale, one)] * (name == "output_norm.weight")
    )
    with pytest.raises(DaliError) as error:
        dali.load(path)
    assert f"{path} has {scale}: a scale beside those of its blocks" in error.value.problem
    assert "another type" in error.value.fix


def test_values_that_are_not_finite(path):
    def spoiled(values):
        values = values.copy()
        values[2, 3, 4] = np.nan
        return values

    rewrite(path, tensors=changed("blk.1.ffn_up_exps", spoiled))
    assert "Expert 2 of blk.1.ffn_up_exps.weight" in refusal(path)


def test_dense_values_that_are_not_finite(path):
    rewrite(path, tensors=changed("token_embd", lambda values: np.where(values > 0.5, np.inf, values)))
    assert "The tensor token_embd.weight in" in refusal(path)


def test_a_file_that_shrinks_while_it_is_loaded(path, monkeypatch):
    from dali.loading.gguf.model import GgufModel

    whole = path.read_bytes()
    read = GgufModel.read

    def cut_first(self, *arguments):
        path.write_bytes(whole[: len(whole) // 2])
        return read(self, *arguments)

    monkeypatch.setattr(GgufModel, "read", cut_first)
    assert "it has changed since it was opened" in refusal(path)


@pytest.mark.parametrize(
    ("key", "value"), [("expert_weights_norm", True), ("attention.temperature_scale", 0.1)]
)
def test_what_deepseek_v2_does_not_do(key, value, tmp_path):
    path = save_gguf(gguf_model("deepseek_v2"), tmp_path / "m.gguf")
    kind = gguf.GGUFValueType.BOOL if value is True else gguf.GGUFValueType.FLOAT32
    problem = refusal(rewrite(path, added={f"deepseek2.{key}": (value, kind)}))
    assert f"its key deepseek2.{key} is" in problem


@pytest.mark.parametrize(
    ("factors", "problem"),
    [
        (np.ones(7), "has 7 values, for 8 frequencies"),
        (np.zeros(8), "has values that are not positive"),
        (np.full(8, np.nan), "has values that are not positive"),
    ],
)
def test_rotary_factors(factors, problem, tmp_path):
    path = save_gguf(gguf_model("mixtral"), tmp_path / "m.gguf")
    wrong = [("rope_freqs.weight", factors.astype(np.float32))]
    rewrite(path, tensors=lambda name, v: [(name, v)] + (wrong if name == "output_norm.weight" else []))
    assert f"the tensor rope_freqs.weight {problem}" in refusal(path)


UNKNOWN = 250  # a type that ggml does not have


def in_an_unknown_type(path, tensor="blk.0.attn_q.weight"):
    """The tensor's type, in a file's table, is the number of none."""
    content = path.read_bytes()
    at = content.index(tensor.encode()) + len(tensor) + 4 + 2 * 8
    path.write_bytes(content[:at] + UNKNOWN.to_bytes(4, "little") + content[at + 4 :])


def test_a_type_that_nobody_reads_is_told_with_the_kind_of_file(saved, tmp_path):
    path = shutil.copy(saved, tmp_path / "Tiny-UD-Q2_K_XL.gguf")
    in_an_unknown_type(path)
    problem = refusal(path)
    assert "the UD-Q2_K_XL file" in problem
    assert "the tensor blk.0.attn_q.weight is in" in problem


def test_an_architecture_that_nobody_knows_is_told_before_its_types(path):
    in_an_unknown_type(rewrite(path, {"general.architecture": "gemma"}))
    assert "is a 'gemma' model, which dali cannot read" in refusal(path)
