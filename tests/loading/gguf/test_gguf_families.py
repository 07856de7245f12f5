"""Every family as GGUF: dali's logits against the model the file was written from."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

import dali
from dali.cli.chat.answer import Answer
from families import FAMILIES
from gguf_models import encode_as, gguf_model, rewrite, save_gguf
from logits import Forced
from on_disk import load_on_disk

TOKENS = torch.randint(3, 97, (23,), generator=torch.Generator().manual_seed(7)).tolist()
DECODED = 4


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """The reference kernels compute with float activations, as transformers does."""
    monkeypatch.setenv("DALI_KERNELS", "torch")


def logits_of(llm) -> torch.Tensor:
    """Logits of the last prompt token and of each decoded one but the last: [DECODED, vocabulary]."""
    sequence = llm.sequence(TOKENS[:-DECODED], max_tokens=DECODED, ignore_eos=True)
    sequence.sampler = Forced(TOKENS[-DECODED:])  # type: ignore[assignment]
    llm.engine.add(sequence)
    while llm.engine.step():
        pass
    return torch.stack(sequence.sampler.logits)  # type: ignore[attr-defined]


def expected(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([TOKENS])).logits[0, -DECODED - 1 : -1]


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=float(wanted.abs().max()) * 2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family, tmp_path):
    model = gguf_model(family)
    llm = dali.load(save_gguf(model, tmp_path / "m.gguf"))
    assert (llm.name, llm.format_name, llm.model.dtype) == ("m", "f32", torch.float32)
    assert_close(logits_of(llm), expected(model))
    assert not list(tmp_path.glob("*store*"))


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("family", "changes", "options"),
    [
        (
            "deepseek_v2",
            {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.7}},
            {"split_kv": True},
        ),
        ("deepseek_v2", {"q_lora_rank": 20, "topk_method": "greedy", "n_group": 1, "topk_group": 1}, {}),
        ("gpt_oss", {"rope_parameters": YARN | {"truncate": False}}, {}),
        ("qwen3_moe", {"rope_parameters": YARN, "tie_word_embeddings": True}, {}),
        ("mixtral", {"sliding_window": None, "head_dim": 24}, {}),
        ("phimoe", {"attention_bias": False, "lm_head_bias": False}, {}),
        ("phimoe", {"sliding_window": 7}, {}),
    ],
    ids=["mla-yarn", "lora", "gpt-oss-yarn", "yarn-tied", "head", "unbiased", "window"],
)
def test_what_a_family_can_be_otherwise(family, changes, options, tmp_path):
    model = gguf_model(family, **changes)
    assert_close(logits_of(dali.load(save_gguf(model, tmp_path / "m.gguf", **options))), expected(model))


def test_llamas_frequencies_in_a_tensor(tmp_path):
    """Llama 3.1's rotary scaling: the converter writes what each frequency is divided by."""
    model = gguf_model("mixtral", sliding_window=None)
    path = save_gguf(model, tmp_path / "m.gguf")
    factors = np.linspace(1, 8, 8, dtype=np.float32)

    def tensors(name, values):
        return [(name, values)] + ([("rope_freqs.weight", factors)] if name == "output_norm.weight" else [])

    llm = dali.load(rewrite(path, tensors=tensors))
    model.model.rotary_emb.inv_freq /= torch.from_numpy(factors)
    assert_close(logits_of(llm), expected(model))


def test_a_split_model(tmp_path):
    model = gguf_model("qwen3_moe")
    save_gguf(model, tmp_path / "m.gguf", shards=9)
    files = sorted(tmp_path.glob("*.gguf"))
    assert len(files) > 2
    assert_close(logits_of(dali.load(tmp_path)), expected(model))


WIDE = {"hidden_size": 256, "moe_intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 2}


class Mixed:
    """Encodes as real files mix types, and keeps what the file says of each tensor."""

    def __init__(self, types: dict[str, Type]) -> None:
        self.types = types
        self.values: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(1)

    def __call__(self, name: str, values: np.ndarray) -> tuple[np.ndarray, Type]:
        kind = next((kind for part, kind in self.types.items() if part in name), Type.F32)
        if values.ndim == 1:
            kind = Type.F32
        try:
            data = gguf.quants.quantize(values, kind)
        except NotImplementedError:  # the package only reads K-quants
            data = self.random_blocks(values, kind)
        self.values[name] = gguf.quants.dequantize(data, kind)
        return data, kind

    def random_blocks(self, values: np.ndarray, kind: Type) -> np.ndarray:
        from dali.store.gguf.blocks import BLOCK_TYPES

        type = BLOCK_TYPES[kind.value]
        raw = self.random.integers(
            0, 256, (*values.shape[:-1], type.row_bytes(values.shape[-1])), dtype=np.uint8
        )
        blocks = raw.view(type.fields)
        for field in {"d", "dmin"} & set(type.fields.names):
            blocks[field] = self.random.uniform(-2e-4, 2e-4, blocks.shape)
        return raw


def put_back(model, values: dict[str, np.ndarray]) -> None:
    """Give `model` the weights that a file of quantized ones holds."""
    with torch.no_grad():
        for layer, block in enumerate(model.model.layers):
            prefix = f"blk.{layer}."
            gate, up, down = (
                torch.from_numpy(values[f"{prefix}ffn_{n}_exps.weight"]) for n in ("gate", "up", "down")
            )
            block.mlp.experts.gate_up_proj.copy_(torch.cat([gate, up], dim=1))
            block.mlp.experts.down_proj.copy_(down)
            for name in ("q", "k", "v"):
                getattr(block.self_attn, f"{name}_proj").weight.copy_(
                    torch.from_numpy(values[f"{prefix}attn_{name}.weight"])
                )
            block.self_attn.o_proj.weight.copy_(torch.from_numpy(values[f"{prefix}attn_output.weight"]))
        model.model.embed_tokens.weight.copy_(torch.from_numpy(values["token_embd.weight"]))
        model.lm_head.weight.copy_(torch.from_numpy(values["output.weight"]))


@pytest.mark.parametrize(
    ("types", "formats"),
    [
        ({"_exps": Type.Q4_0, "attn": Type.Q5_0, "token": Type.Q8_0, "output": Type.Q6_K}, "w4"),
        ({"_exps": Type.Q8_0, "attn": Type.Q4_1, "token": Type.F16, "output.w": Type.BF16}, "w8"),
        ({"_exps": Type.MXFP4, "attn": Type.Q5_1, "token": Type.Q4_0, "output.w": Type.Q5_K}, "mxfp4"),
        ({"_exps": Type.BF16, "attn": Type.Q4_K, "token": Type.Q6_K, "output.w": Type.Q8_0}, "bf16"),
        ({"_exps": Type.Q4_K, "attn": Type.Q8_0}, "q4k"),
        ({"_exps": Type.Q6_K, "attn": Type.Q5_K, "down_exps": Type.Q5_K}, "q6k"),
        ({"_exps": Type.Q5_1, "attn": Type.Q4_1}, "q5_1"),
        ({"down_exps": Type.Q8_0, "_exps": Type.Q4_K}, "q4k (down w8)"),
        ({"blk.0.ffn_down_exps": Type.Q8_0, "_exps": Type.Q4_K}, "q4k (down w8), q4k"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mixed_types_that_lose_nothing(types, formats, tmp_path):
    model, encode = gguf_model("qwen3_moe", **WIDE), Mixed(types)
    path = save_gguf(model, tmp_path / "m.gguf", encode)
    put_back(model, encode.values)
    llm = dali.load(path, dtype="float32")
    assert (llm.format_name, llm.loaded.converted) == (formats, {})
    assert_close(logits_of(llm), expected(model))


def test_mixed_layers_with_compiled_kernels(tmp_path, monkeypatch):
    monkeypatch.delenv("DALI_KERNELS")
    encode = Mixed({"blk.0.ffn_down_exps": Type.Q8_0, "_exps": Type.Q4_K})
    model = gguf_model("qwen3_moe", **WIDE)
    path = save_gguf(model, tmp_path / "m.gguf", encode)
    put_back(model, encode.values)
    found, wanted = logits_of(dali.load(path, dtype="float32")), expected(model)
    assert float((found - wanted).norm() / wanted.norm()) < 0.03  # activations in int8


def test_what_a_conversion_that_was_asked_for_loses_is_said(tmp_path):
    encode = Mixed({"down_exps": Type.Q6_K, "_exps": Type.Q8_0})
    path = save_gguf(model := gguf_model("qwen3_moe", **WIDE), tmp_path / "m.gguf", encode)
    put_back(model, encode.values)
    said: list[str] = []
    llm = dali.load(path, quant="w8", dtype="float32", notify=said.append)
    ((conversion, error),) = llm.stats()["converted"].items()
    assert conversion == "Q6_K to w8"
    assert 0.001 < error < 0.01
    assert said == [f"Experts are converted from {conversion}: relative error {error:.2%}."]
    answer = Answer(llm, sequence := llm.sequence(TOKENS, max_tokens=2))
    llm.loop.complete([sequence])
    assert f"converted: experts {conversion} ({error:.2%})" in answer.summary()
    found, wanted = logits_of(llm), expected(model)
    assert 0 < float((found - wanted).norm() / wanted.norm()) < 0.05


def test_another_format_on_request(tmp_path):
    model = gguf_model("olmoe", intermediate_size=64)
    path = save_gguf(model, tmp_path / "m.gguf", encode_as(Type.Q8_0))
    llm = dali.load(path, quant="w4", dtype="float32")
    assert llm.format_name == "w4"
    assert 0.05 < llm.loaded.converted["Q8_0 to w4"] < 0.2
    assert dali.load(path).model.dtype == torch.bfloat16  # what quantized dense weights are held in


def test_an_expert_a_tensor_as_before_2024(tmp_path):
    def apart(name, values):
        if "_exps" not in name:
            return [(name, values)]
        return [(name.replace("_exps", f".{expert}"), one) for expert, one in enumerate(values)]

    model = gguf_model("mixtral")
    path = rewrite(save_gguf(model, tmp_path / "m.gguf"), tensors=apart)
    assert_close(logits_of(dali.load(path)), expected(model))


@pytest.mark.parametrize("disk", [False, True])
def test_what_one_expert_loses_that_is_in_another_type_than_the_first_is_said(tmp_path, monkeypatch, disk):
    def apart(name, values):
        if "_exps" not in name:
            return [(name, values)]
        return [(name.replace("_exps", f".{expert}"), one) for expert, one in enumerate(values)]

    def encode(name, values):
        kind = Type.Q8_0 if "ffn_down." in name and "ffn_down.3" not in name else Type.F32
        return gguf.quantize(values, kind), kind

    path = save_gguf(gguf_model("olmoe", intermediate_size=64), tmp_path / "m.gguf")
    rewrite(path, tensors=apart, encode=encode)
    monkeypatch.delenv("DALI_KERNELS")
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path))
    llm = load_on_disk(monkeypatch, path, 8) if disk else dali.load(path)
    ((conversion, error),) = llm.loaded.converted.items()
    assert conversion == "F32 to w8"
    assert 0.001 < error < 0.01


def test_gate_and_up_in_one_tensor(tmp_path):
    gates = {}

    def fused(name, values):
        if "ffn_gate_exps" in name:
            gates[name] = values
            return []
        if "ffn_up_exps" not in name:
            return [(name, values)]
        gate = gates[name.replace("up", "gate")]
        return [(name.replace("up", "gate_up"), np.concatenate([gate, values], axis=1))]

    model = gguf_model("qwen3_moe")
    path = save_gguf(model, tmp_path / "m.gguf")
    assert_close(logits_of(dali.load(rewrite(path, tensors=fused))), expected(model))


def test_too_little_memory(tmp_path):
    path = save_gguf(gguf_model("olmoe"), tmp_path / "m.gguf")
    with pytest.raises(
        dali.errors.DaliError, match=r"m needs \d+\.\d [KM]iB of memory .*; ram allows 976\.6 KiB"
    ):
        dali.load(path, ram=10**6)


def test_layers_that_differ_on_an_accelerator(tmp_path, monkeypatch):
    encode = Mixed({"blk.0.ffn_down_exps": Type.Q8_0, "_exps": Type.Q4_K})
    path = save_gguf(gguf_model("qwen3_moe", **WIDE), tmp_path / "m.gguf", encode)
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path))
    alone = dali.load(path, dtype="float32")
    larger, smaller = (layout.record_bytes for layout in alone.loaded.layouts)
    assert larger > smaller
    llm = dali.load(path, dtype="float32", device="sim:paper", vram=6 * larger, assign="gpu", prefetch="none")
    assert torch.equal(logits_of(llm), logits_of(alone))
    total = llm.telemetry.total()
    assert total.cpu < total.lookups  # some ran there
    assert llm.telemetry.layer(1).link_bytes % smaller == 0
