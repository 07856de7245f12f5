"""Every architecture as llama.cpp's own converter writes it (benchmarks/tools/convert_tiny.py): its weights and its configuration
against transformers' model that the file was made from, and dali's logits where the engine can run it."""

from __future__ import annotations

import lzma
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import dali
from dali.errors import DaliError
from dali.hooks import seam
from dali.kernels.packing import unpack
from dali.loading.dense import load_dense
from dali.loading.gguf.families import families
from dali.store.gguf.reader import read
from decoding_families import OLDER
from logits import Forced

sys.path.append(str(Path(__file__).parents[3] / "benchmarks" / "tools"))
from fuzz_settings import changed_gguf
from tiny_architectures import TINY, Unstepped, model_of, tiny_model

FILES = Path(__file__).parent / "converted"
KNOWN = set(CONFIG_MAPPING)
if OLDER:
    KNOWN.discard("qwen4_exp_text")  # whose configuration has other kinds of layers there
NAMES = [name for name, (model_type, _) in TINY.items() if set(model_type.split("/")) <= KNOWN]
TOKENS = torch.randint(5, 48, (23,), generator=torch.Generator().manual_seed(1)).tolist()
DECODED = 4
# Nothing in a file says in how many tokens at a time transformers computes these states.
OTHER_CHUNKS = {"granitehybrid", "nemotron_h_moe"}
INPUTS = 5


def content(name: str) -> bytes:
    return lzma.decompress((FILES / f"{name}.gguf.xz").read_bytes())


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def path(name, tmp_path_factory):
    path = tmp_path_factory.mktemp(name) / f"{name}.gguf"
    path.write_bytes(content(name))
    return path


@pytest.fixture(scope="module")
def model(name):
    """transformers' model that the file was made from."""
    return tiny_model(name)


def plain(parameter: str) -> str:
    return parameter.replace("model.language_model.", "model.")


def assert_same(name: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    if name.endswith("A_log"):  # exp and log of float32
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)
    else:
        assert torch.equal(found, wanted), name


def test_every_architecture_is_converted():
    assert {name.partition("-shared")[0] for name in TINY} >= families().keys()
    assert {file.name.removesuffix(".gguf.xz") for file in FILES.iterdir()} == set(TINY)


def test_weights_are_transformers(path, model):
    source = Unstepped(path)
    weights = source.read(source.experts.layouts(None), torch.float32, False, lambda nbytes: None)
    wanted = {plain(name): value for name, value in model.state_dict().items()}
    for name, value in weights.dense.items():
        assert_same(name, value, wanted.pop(name))
    if source.config.tie_word_embeddings:
        wanted.pop("lm_head.weight")
    experts = seam.experts_modules(model)
    assert {name.rpartition(".")[0] for name in wanted} == {plain(name) for name in experts}
    for layer, (name, module) in enumerate(experts.items()):
        layout = source.experts.layouts(None)[layer]
        described = seam.describe(name, module)
        parameters = [module.get_parameter(name) for name in described.parameter_names]
        for expert, record in enumerate(weights.experts.records[layer]):
            whole = described.canonical(*(parameter[expert] for parameter in parameters))
            for part, (rows, columns) in described.shape.matrices.items():
                found = unpack(layout.part(record, part), rows, columns, layout.formats[part])
                assert torch.equal(found, getattr(whole, part)), (name, expert, part)


def test_transformers_loads_what_is_read(path):
    """Its own loading renames parameters of some families, which must not touch these names."""
    source = Unstepped(path)
    dense = source.dense.read(torch.float32)
    read([dense], lambda nbytes: None)
    wanted = dense.finish()
    loaded = load_dense(path, source.config, torch.float32, wanted).state_dict()
    assert loaded.keys() - {"lm_head.weight"} == wanted.keys() - {"lm_head.weight"}
    assert [name for name, value in wanted.items() if not torch.equal(loaded[name], value)] == []


def test_the_configuration_gives_the_same_logits(name, path, model):
    """Other weights stand for the file's, so that a difference is the configuration's."""
    same = model_of(Unstepped(path).config)
    same.load_state_dict({plain(name): value for name, value in model.state_dict().items()})
    with torch.inference_mode():
        found, wanted = (one(torch.tensor([TOKENS])).logits for one in (same, model))
    allowed = float(wanted.abs().max()) * 1e-5 if name in OTHER_CHUNKS else 0
    torch.testing.assert_close(found, wanted, rtol=0, atol=allowed)


def test_logits_equal_transformers(path, model, monkeypatch):
    monkeypatch.setenv("DALI_KERNELS", "torch")
    try:
        llm = dali.load(path, dtype="float32")
    except DaliError as error:
        if "layers the engine cannot step" not in error.problem:
            raise
        pytest.skip(error.problem)
    sequence = llm.sequence(TOKENS[:-DECODED], max_tokens=DECODED, ignore_eos=True)
    sequence.sampler = Forced(TOKENS[-DECODED:])
    llm.engine.add(sequence)
    while llm.engine.step():
        pass
    found = torch.stack(sequence.sampler.logits)
    with torch.inference_mode():
        wanted = model(torch.tensor([TOKENS])).logits[0, -DECODED - 1 : -1]
    # transformers sums the rows of a delta net's state over chunks.
    close = 1e-4 if model.config.model_type in ("qwen3_next", "qwen3_5_moe_text") else 2e-5
    torch.testing.assert_close(found, wanted, rtol=0, atol=float(wanted.abs().max()) * close)


def test_changed_metadata_is_read_or_refused(name, tmp_path):
    whole, refused = content(name), []
    for number in range(INPUTS):
        path, _ = changed_gguf(whole, tmp_path / "m.gguf", Random(f"{name} {number}"))
        try:
            source = Unstepped(path)
            read([source.dense.read(torch.float32)], lambda nbytes: None)
        except DaliError as error:
            refused.append(error.problem)
    assert all(str(tmp_path) in problem for problem in refused)


def test_what_transformers_keeps_in_float32_stays_exact(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(content("glm4moe"))
    dense = Unstepped(path).dense.read(torch.bfloat16)
    read([dense], lambda nbytes: None)
    types = {name: value.dtype for name, value in dense.finish().items() if ".layers.1." in name}
    assert types["model.layers.1.mlp.gate.e_score_correction_bias"] == torch.float32
    assert types["model.layers.1.self_attn.q_proj.weight"] == torch.bfloat16
