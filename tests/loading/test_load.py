"""Loading: what cannot be run or read is refused clearly, and what is loaded is what the checkpoint says."""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Mxfp4Config, T5Config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import dali
from dali.errors import DaliError, UsageError
from dali.hooks.seam import experts_modules
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import FORMATS
from dali.loading.budget import choose_layout
from dali.loading.loaded import LoadedModel
from dali.loading.locate import BUNDLED
from dali.loading.room import HEADROOM
from dali.loading.safetensors import SafetensorsModel
from dali.options import LoadOptions
from dali.store.arena import Arena
from dali.store.experts_module import ExpertsModule
from dali.store.packed.reader import DamagedStore
from dali.units import parse_size
from families import COMMON, random_model, save_fp8_model, save_model, save_mxfp4_model

PLENTY = 2**40


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = random_model("qwen3_moe", num_hidden_layers=2)
    return model, save_model(model, tmp_path_factory.mktemp("qwen3_moe"))


@pytest.fixture
def directory(saved, tmp_path):
    return Path(shutil.copytree(saved[1], tmp_path / "model"))


def load(
    directory: Path,
    quant: str = "f32",
    dtype: str = "auto",
    ram: int | None = PLENTY,
    told: list | None = None,
    notes: list[str] | None = None,
) -> LoadedModel:
    def meter(what: str, total: int):
        if told is not None:
            told.append((what, total))
        return lambda done: None

    options = LoadOptions(quant=quant, dtype=dtype, ram=ram)
    notify = (lambda message: None) if notes is None else notes.append
    return SafetensorsModel(directory).load(options, False, meter, notify)


def refusal(directory: Path, **options: object) -> DaliError:
    """The error of a load that fails; it is one sentence of what and one of the way out, and leaves no
    store."""
    with pytest.raises(DaliError) as error:
        load(directory, **options)
    for sentence in (error.value.problem, error.value.fix):
        assert sentence.endswith("."), sentence
        assert "\n" not in sentence
        assert len(sentence) < 600
    assert not list(Path(os.environ["DALI_CACHE_DIR"]).rglob("*.safetensors"))
    return error.value


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(directory: Path, edit) -> None:
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@torch.inference_mode()
def logits(model) -> torch.Tensor:
    """Of a model as transformers runs it, without dali's step: its attention needs one."""
    model.set_attn_implementation("eager")
    return model(torch.arange(3, 25)[None]).logits[0]


# What is loaded


def test_logits_are_those_of_transformers(saved):
    torch.testing.assert_close(logits(load(saved[1]).model), logits(saved[0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_checkpoints_of_lower_precision(tmp_path, dtype):
    """The dense part keeps the checkpoint's type, or takes the one asked for; experts lose nothing in
    theirs."""
    stock = random_model("mixtral", dtype=dtype)
    directory = save_model(stock, tmp_path / "model")
    name = {torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    model = load(directory, name).model
    assert {p.dtype for p in model.parameters()} == {dtype}
    expected = logits(stock)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=0.05 * float(expected.abs().max()))
    model = load(directory, name, "float32").model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(model), logits(stock.float()), rtol=0, atol=1e-4)


def test_mxfp4_experts_lose_nothing_in_bf16(tmp_path):
    directory = save_mxfp4_model(tmp_path / "gpt-oss")
    stock = AutoModelForCausalLM.from_pretrained(
        directory,
        quantization_config=Mxfp4Config(dequantize=True),
        attn_implementation="eager",
        experts_implementation="eager",
        dtype=torch.float32,
    ).float()  # transformers 5.17 leaves the experts in bfloat16
    expected = logits(stock)
    found = logits(load(directory, "bf16", "float32").model)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    assert {p.dtype for p in load(directory, "bf16").model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_checkpoints_own_values_are_kept(tmp_path, dtype):
    stock = random_model("olmoe", dtype=dtype)
    loaded = load(save_model(stock, tmp_path / "model"), "keep")
    assert loaded.layout.format.dtype == dtype
    weights = loaded.layout.unpack(loaded.pool.lease(1).records[2])
    own = list(experts_modules(stock).values())[1]
    assert torch.equal(weights.down, own.down_proj[2].float())


def test_a_checkpoint_in_mxfp4_is_kept_so_and_one_in_fp8_is_refused(tmp_path):
    kept = load(save_mxfp4_model(tmp_path / "gpt-oss"), "keep")
    assert kept.format_name == "mxfp4"
    exact = load(tmp_path / "gpt-oss", "f32")
    for held, wanted in zip(kept.pool.lease(0).records, exact.pool.lease(0).records, strict=True):
        assert torch.equal(kept.layout.unpack(held).up, exact.layout.unpack(wanted).up)
    save_fp8_model(tmp_path / "fp8")
    with pytest.raises(DaliError, match="are in FP8, and dali packs no such values"):
        load(tmp_path / "fp8", "keep")


@pytest.mark.parametrize("quant", ["q4k", "q6k"])
def test_experts_are_packed_in_the_k_quants(tmp_path, quant):
    stock = random_model("olmoe")
    directory = save_model(stock, tmp_path / "model")
    loaded = load(directory, quant)
    assert loaded.format_name == quant
    found = loaded.layout.unpack(loaded.pool.lease(1).records[2]).down
    wanted = list(experts_modules(stock).values())[1].down_proj[2].detach()
    error = float((found - wanted).norm() / wanted.norm())
    most = {"q4k": 0.12, "q6k": 0.03}  # half of a fifteenth of the range, or of a sixty-third
    assert 0 < error < most[quant]
    assert dali.load(directory, quant=quant).generate([5, 6, 7], max_tokens=3, temperature=0).tokens


def test_the_dense_weights_are_our_own(directory):
    """Not views of the mapped file, which may be replaced or evicted."""
    model = load(directory).model
    before = logits(model)
    with (directory / "model.safetensors").open("r+b") as file:
        file.write(b"\0" * (directory / "model.safetensors").stat().st_size)
    assert torch.equal(logits(model), before)


def test_the_store_is_built_once_and_again_when_the_model_changes(directory, saved):
    told: list[tuple[str, int]] = []
    for _ in range(2):
        loaded = load(directory, "w8", told=told)
    assert [what for what, _ in told] == ["Packing experts to w8", "Loading experts", "Loading experts"]
    assert {total for _, total in told} == {loaded.expert_bytes}
    edit_weights(
        directory, lambda t: t.update({name: value * 2 for name, value in t.items() if "experts.3" in name})
    )
    del told[:]
    changed = load(directory, "w8", told=told)
    assert [what for what, _ in told] == ["Packing experts to w8", "Loading experts"]
    assert not torch.equal(logits(changed.model), logits(loaded.model))


def test_each_format_has_its_own_store(directory, cache):
    for quant in ("w8", "w4", "w8"):
        load(directory, quant)
    assert sorted(path.name for path in cache.rglob("*.safetensors")) == ["w4.safetensors", "w8.safetensors"]


def test_a_damaged_store_is_named_and_built_again(directory, cache):
    expected = logits(load(directory).model)
    (store,) = cache.rglob("*.safetensors")
    content = bytearray(store.read_bytes())
    content[-20_000] ^= 1
    store.write_bytes(content)
    notes: list[str] = []
    assert torch.equal(logits(load(directory, notes=notes).model), expected)
    assert re.search(f"{store}: expert . of MoE layer 1 fails its checksum", notes[0])


@pytest.fixture
def damaged(directory, cache):
    """A model whose store has one bit flipped, and its store."""
    expected = dali.load(directory, quant="f32").generate([5, 6], temperature=0, max_tokens=4).tokens
    (store,) = cache.rglob("*.safetensors")
    content = bytearray(store.read_bytes())
    content[-20_000] ^= 1
    store.write_bytes(content)
    return store, expected


def test_a_damaged_store_is_built_anew_and_one_line_says_so(directory, damaged):
    store, expected = damaged
    notes: list[str] = []
    for _ in range(2):
        llm = dali.load(directory, quant="f32", notify=notes.append)
        assert llm.generate([5, 6], temperature=0, max_tokens=4).tokens == expected
    (note,) = notes
    assert note.startswith(f"Cannot use the expert store {store}: expert ")
    assert note.endswith(" fails its checksum. It is built anew.")


def test_memory_of_the_damaged_one_is_free_before(directory, damaged, monkeypatch):
    arenas: list[weakref.ref[Arena]] = []

    def arena(*sizes: int) -> Arena:
        gc.disable()  # it must not take the collector, which may come late
        assert not any(earlier() for earlier in arenas)
        made = Arena(*sizes)
        arenas.append(weakref.ref(made))
        return made

    monkeypatch.setattr("dali.store.packed.reader.Arena", arena)
    try:
        dali.load(directory, quant="f32")
    finally:
        gc.enable()
    assert len(arenas) == 2


def test_one_that_cannot_be_built_anew_is_named_with_a_way_out(directory, damaged, monkeypatch):
    def unlink(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    store, _ = damaged
    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(DaliError) as error:
        dali.load(directory, quant="f32")
    assert error.value.problem == f"Cannot write the expert store {store} (Read-only file system)."
    assert "DALI_CACHE_DIR" in error.value.fix
    assert store.is_file()


def test_a_disk_that_damages_every_store_is_an_error(directory, damaged, monkeypatch):
    monkeypatch.setattr("dali.store.packed.reader.xxhash", SimpleNamespace(xxh3_64_intdigest=lambda view: 0))
    with pytest.raises(DamagedStore, match="its disk may be failing"):
        dali.load(directory, quant="f32")


# What cannot be run


def save_tiny(directory: Path, family: str, **changes: object) -> Path:
    config = CONFIG_MAPPING[family](**(COMMON | changes))
    return save_model(AutoModelForCausalLM.from_config(config), directory)


def test_a_dense_model(tmp_path):
    error = refusal(save_tiny(tmp_path / "llama", "llama", intermediate_size=40))
    assert "is not a Mixture-of-Experts model" in error.problem
    assert "transformers or llama.cpp" in error.fix


def test_layers_the_engine_cannot_step(tmp_path):
    directory = save_tiny(
        tmp_path / "jamba",
        "jamba",
        num_experts=4,
        num_experts_per_tok=2,
        expert_layer_period=1,
        expert_layer_offset=0,
        attn_layer_period=2,
        attn_layer_offset=1,
        use_mamba_kernels=False,
    )
    error = refusal(directory)
    assert "cannot step (linear_attention)" in error.problem
    assert "dali.attach" in error.fix


def test_no_causal_language_model(tmp_path):
    T5Config().save_pretrained(tmp_path)
    assert "is a t5 model" in refusal(tmp_path).problem


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_a_quantization_dali_cannot_read(directory, method):
    edit_config(directory, quantization_config={"quant_method": method, "bits": 4})
    error = refusal(directory)
    assert f"is quantized with {method}" in error.problem
    assert "bfloat16 or FP8" in error.fix


def test_an_activation_dali_does_not_know(directory):
    edit_config(directory, hidden_act="mish")
    assert "activation dali does not know (Mish" in refusal(directory).problem


def test_custom_code_is_never_run(directory, monkeypatch):
    """Nor offered at a prompt, which would hang a server."""
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked at a prompt"))
    code = "raise SystemExit('custom code ran')\n"
    (directory / "configuration_x.py").write_text(code)
    (directory / "tokenization_x.py").write_text(code)
    edit_config(directory, model_type="custom", auto_map={"AutoConfig": "configuration_x.Config"})
    assert "custom code" in refusal(directory).problem


# What cannot be read


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'"x"', b"{}", b"\xff\xfe\x00", b"[" * 100_000],
    ids=["empty", "cut", "list", "null", "text", "{}", "bytes", "deep"],
)
def test_a_config_that_is_none(directory, content):
    (directory / "config.json").write_bytes(content)
    assert f"Cannot read {directory / 'config.json'}" in refusal(directory).problem


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"model_type": "nonsense"}, "nonsense"),
        ({"model_type": 5}, "5"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": -64}, "-64"),
        ({"num_attention_heads": 0}, "zero"),
        ({"hidden_act": "nonsense"}, "nonsense"),
        ({"rope_parameters": {"rope_type": "nonsense"}}, "nonsense"),
        ({"layer_types": ["a", "b"]}, "layer_types"),
        ({"dtype": "nonsense"}, "nonsense"),
        ({"quantization_config": [1]}, "list"),
        ({"num_hidden_layers": 3}, "no weights for model.layers.2"),
        ({"num_local_experts": 7}, "8 experts"),
        ({"moe_intermediate_size": 48}, r"expected floats \[48, 64\]"),
        ({"vocab_size": 50}, r"lm_head.weight .*is \[97, 64\], its config says \[50, 64\]"),
    ],
    ids=lambda value: min(value) if isinstance(value, dict) else "",
)
def test_a_config_with_wrong_values(directory, changes, detail):
    edit_config(directory, **changes)
    with pytest.raises(DaliError, match=detail):
        load(directory)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.gate.weight", "lm_head.weight"])
def test_a_missing_dense_weight(directory, name):
    edit_weights(directory, lambda tensors: tensors.pop(name))
    with pytest.raises(DaliError, match=f"has no weights for {name}"):
        load(directory)


def test_a_dense_weight_of_the_wrong_shape(directory):
    edit_weights(directory, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(65)}))
    with pytest.raises(DaliError, match=r"model.norm.weight .*is \[65\], its config says \[64\]"):
        load(directory)


def test_an_expert_that_is_not_finite(directory):
    name = "model.layers.1.mlp.experts.5.up_proj.weight"
    edit_weights(directory, lambda tensors: tensors[name].fill_(float("inf")))
    assert "Expert 5 of MoE layer 1: A weight is NaN or infinite" in refusal(directory, quant="w8").problem


def test_truncated_weights(directory):
    os.truncate(directory / "model.safetensors", 50_000)
    assert "model.safetensors is damaged" in refusal(directory).problem


def test_a_tokenizer_that_brings_its_library_down(tmp_path):
    model = shutil.copytree(BUNDLED / "dali-tiny", tmp_path / "tiny")
    said = json.loads((model / "tokenizer.json").read_text())
    said["model"]["continuing_subword_prefix"] = "null"  # longer than what it is cut off from
    (model / "tokenizer.json").write_text(json.dumps(said))
    assert f"Cannot load the tokenizer of {model} (range end index" in refusal(model).problem


def test_packages_that_a_tokenizer_takes_are_named(directory, monkeypatch):
    """transformers asks for tiktoken whatever the file is."""
    (directory / "tokenizer.json").unlink()
    for content, packages in (
        (b"\n\x0e\n\x05<unk>", "sentencepiece and protobuf"),
        (b"IQ== 0\n", "tiktoken"),
    ):
        (directory / "tokenizer.model").write_bytes(content)
        with monkeypatch.context() as patch:
            patch.setattr("dali.loading.safetensors.find_spec", lambda module: None)
            error = refusal(directory)
            assert f"is a tokenizer.model, which takes {packages} to be read" in error.problem
            assert f"`pip install {packages.replace(' and', '')}`" in error.fix
            patch.setattr("dali.loading.safetensors.find_spec", lambda module: object())
            assert "Cannot load the tokenizer" in refusal(directory).problem


def test_a_tied_weight_of_another_shape(directory):
    edit_config(directory, tie_word_embeddings=True)
    edit_weights(directory, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(10, 64)}))
    assert "lm_head.weight" in refusal(directory).problem
    assert refusal(directory).problem.endswith("is [10, 64], its config says [97, 64].")


def test_shards_without_their_index(directory):
    (directory / "model.safetensors").rename(directory / "model-00001-of-00001.safetensors")
    assert (
        "has model-00001-of-00001.safetensors, and lacks model.safetensors.index.json"
        in refusal(directory).problem
    )


def test_more_layers_than_any_model_has(directory):
    edit_config(directory, num_hidden_layers=2**31)
    assert "has 2147483648 layers, says its config" in refusal(directory).problem


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(directory, monkeypatch, name):
    """Whoever runs the tests may read everything, so opening is what refuses."""

    def refuse(opened):
        def call(path, *arguments, **options):
            if str(path).endswith(name):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return opened(path, *arguments, **options)

        return call

    monkeypatch.setattr("builtins.open", refuse(open))
    monkeypatch.setattr(Path, "open", refuse(Path.open))
    monkeypatch.setattr(Path, "read_bytes", refuse(Path.read_bytes))
    error = refusal(directory)
    assert error.problem == f"Cannot read {directory / name} (Permission denied)."
    assert error.fix == "Make it readable, or pick another."


@pytest.mark.parametrize("dtype", [-0.5, "int8"])
def test_a_type_that_weights_cannot_have(directory, dtype):
    edit_config(directory, dtype=dtype)
    assert "its dtype is" in refusal(directory).problem


def test_a_quantization_that_says_nothing(directory):
    edit_config(directory, quantization_config={})
    assert load(directory).format_name == "f32"


@pytest.mark.parametrize("damage", [None, "{", "[]", "{}"])
def test_a_missing_or_damaged_tokenizer(directory, damage):
    (directory / "tokenizer_config.json").unlink()
    if damage is None:
        (directory / "tokenizer.json").unlink()
    else:
        (directory / "tokenizer.json").write_text(damage)
    assert "tokenizer" in refusal(directory).problem


# Requests


@pytest.mark.parametrize(("option", "value"), [("quant", "w5"), ("quant", ""), ("dtype", "int8")])
def test_unknown_values(directory, option, value):
    error = refusal(directory, **{option: value})
    assert isinstance(error, UsageError)
    assert repr(value) in error.problem


def test_not_enough_memory(directory):
    error = refusal(directory, quant="auto", ram=2**20)
    said = r"needs \d+\.\d KiB of memory with w4 experts, and 1\.0 GiB to work in; ram allows 1\.0 MiB\."
    assert re.search(said, error.problem)
    assert "w4" not in error.fix  # which is what was tried
    (enough,) = re.findall(r"Give ram (\w+)", error.fix)
    either = re.findall(r"\bram (\w+)", refusal(directory, quant="f32", ram=2**20).fix)
    for quant, ram in zip(("auto", "f32", "w4"), (enough, *either), strict=True):
        load(directory, quant=quant, ram=parse_size(ram))


def test_the_model_that_ships_inside_goes_by_its_name(dali_tiny):
    assert refusal(dali_tiny, ram=2**20).problem.startswith("dali-tiny needs ")


def test_auto_takes_w8_if_it_fits_and_else_w4(directory, monkeypatch):
    shape = ExpertShape(64, 40, Activation("silu"))
    modules = [ExpertsModule(f"layers.{layer}", 8, shape, False, True) for layer in range(3)]
    w8, w4 = (ExpertLayout(shape, FORMATS[name]) for name in ("w8", "w4"))
    dense = 12345

    def chosen(ram: int | None, quant: str = "auto") -> ExpertLayout:
        return choose_layout(modules, quant, dense, ram, "it")

    enough = {layout.format.name: 24 * layout.record_bytes + dense + HEADROOM for layout in (w8, w4)}
    assert w8.record_bytes > w4.record_bytes
    assert chosen(enough["w8"]) == w8
    assert chosen(enough["w8"] - 1) == w4
    assert chosen(enough["w4"]) == w4
    assert chosen(enough["w4"], "w4") == w4
    assert load(directory, "auto").layout.format.name == "w8"
    for ram, quant in ((enough["w4"] - 1, "auto"), (enough["w8"] - 1, "w8"), (enough["w8"], "f32")):
        with pytest.raises(DaliError, match="; ram allows") as error:
            chosen(ram, quant)
        assert error.value.fix.startswith("With quant w4 it needs ") == (quant != "auto")
    monkeypatch.setattr("dali.loading.budget.available_ram", lambda: enough["w4"] - 1)
    with pytest.raises(DaliError, match="are free") as error:
        chosen(None)
    assert error.value.fix == "Close other programs, or choose a smaller model."
    assert choose_layout(modules, "w4", dense, None, "it", freed=1) == w4


def test_errors_come_through_the_front_door(tmp_path):
    with pytest.raises(UsageError, match=r"no config\.json"):
        dali.load(tmp_path)


@pytest.mark.parametrize("block", [(24, 20), (128, 128), None], ids=["odd blocks", "one block", "no blocks"])
def test_a_checkpoint_in_fp8_is_the_model_it_stands_for(tmp_path, block):
    expected = save_fp8_model(tmp_path / "model", block=block)
    loaded = load(tmp_path / "model")
    wanted = {name: p for name, p in expected.state_dict().items() if ".experts." not in name}
    found = loaded.model.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    for layer, module in enumerate(experts_modules(expected).values()):
        lease = loaded.pool.lease(layer)
        for expert, record in enumerate(lease.records):
            weights = lease.layout.unpack(record)
            assert torch.equal(torch.cat([weights.gate, weights.up]), module.gate_up_proj[expert])
            assert torch.equal(weights.down, module.down_proj[expert])


def test_the_generation_config_of_a_checkpoint_in_fp8_is_read(tmp_path):
    save_fp8_model(tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_sample": True, "temperature": 0.375}))
    assert load(tmp_path / "model").sampling["temperature"] == 0.375


@pytest.mark.parametrize("part", ["mlp.experts.3.up_proj", "self_attn.o_proj"])
def test_a_weight_in_fp8_without_its_scales(tmp_path, part):
    save_fp8_model(tmp_path / "model")
    path, name = tmp_path / "model" / "model.safetensors", f"model.layers.1.{part}.weight_scale_inv"
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    assert f"no {name}" in refusal(tmp_path / "model").problem


def test_a_weight_in_fp8_with_other_scales(tmp_path):
    save_fp8_model(tmp_path / "model")
    edit_config(
        tmp_path / "model", quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16]}
    )
    assert "cannot be dequantized (its scales are" in refusal(tmp_path / "model").problem
