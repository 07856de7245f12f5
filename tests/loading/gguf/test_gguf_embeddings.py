"""Embeddings and output heads stay in the file's type: rows are decoded when asked for, and a tied head shares the one matrix."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from test_gguf_families import WIDE, Mixed

import dali
from dali.errors import DaliError
from dali.fused.dense import PackedLinear
from dali.fused.embedding import PackedEmbedding
from dali.fused.release import release
from dali.kernels import native
from dali.kernels.packing import unpack
from dali.loading.gguf.model import GgufModel
from dali.loading.room import DoesNotFit
from decoded import decoded
from gguf_models import encode_as, gguf_model, rewrite, save_gguf

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
IDS = torch.tensor([[0, 96, 17], [16, 15, 96]])
SMALL = WIDE | {"num_hidden_layers": 1}


@pytest.fixture
def saved(tmp_path):
    """(type of the embeddings, tied) -> a file, and what the gguf package says its embeddings and head are."""

    def save(kind: Type, tied: bool = True):
        types = {"_exps": Type.Q8_0, "token_embd": kind, "output.w": kind, "attn": Type.Q8_0}
        encode = Mixed(types)
        model = gguf_model("qwen3_moe", **SMALL, tie_word_embeddings=tied)
        path = save_gguf(model, tmp_path / "m.gguf", encode)
        table = torch.from_numpy(encode.values["token_embd.weight"]).float()
        return path, table, table if tied else torch.from_numpy(encode.values["output.weight"]).float()

    return save


def unpacked(module) -> torch.Tensor:
    rows, columns = (
        module.weight.shape
        if isinstance(module, PackedEmbedding)
        else (module.out_features, module.in_features)
    )
    return unpack(module.packed, rows, columns, module.format)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_K, Type.Q6_K, Type.F16, Type.BF16, Type.F32])
def test_rows_are_those_of_the_gguf_package(saved, kind, dtype):
    path, table, head = saved(kind, tied=False)
    model = dali.load(path, dtype=dtype).model
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, PackedEmbedding)
    assert torch.equal(embedding(IDS), table.to(getattr(torch, dtype))[IDS])
    assert torch.equal(unpacked(model.lm_head), head)
    assert (embedding.weight.shape, embedding.weight.dtype) == (table.shape, getattr(torch, dtype))
    for beyond in (97, 111, -1):
        with pytest.raises(IndexError):
            embedding(torch.tensor([beyond]))


@pytest.mark.parametrize("kind", [Type.Q6_K, Type.Q8_0, Type.BF16])
def test_a_tied_head_is_the_same_matrix(saved, kind):
    path, table, _ = saved(kind)
    llm = dali.load(path)
    embedding, head = llm.model.get_input_embeddings(), llm.model.lm_head
    assert isinstance(head, PackedLinear)
    assert head.packed is embedding.packed
    assert torch.equal(unpacked(head), table)
    buffers = {tensor.data_ptr(): tensor.nbytes for _, tensor in llm.model.named_buffers()}
    assert llm.dense_bytes == sum(buffers.values()) + sum(p.nbytes for p in llm.model.parameters())


@pytest.mark.parametrize("kind", [Type.Q6_K, Type.Q4_0, Type.F16, Type.BF16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_decodes_in_one_call_with_the_same_bits(saved, kind, dtype):
    llm = dali.load(saved(kind)[0], dtype=dtype)
    assert llm.engine.decoder is not None
    natively = decoded(llm)
    llm.engine.decoder = None
    assert all(map(torch.equal, natively, decoded(llm)))


def test_a_model_with_float_experts_has_its_embeddings_in_floats(tmp_path):
    types = {"_exps": Type.BF16, "token_embd": Type.Q8_0}
    path = save_gguf(gguf_model("qwen3_moe", **SMALL), tmp_path / "m.gguf", Mixed(types))
    assert isinstance(dali.load(path).model.get_input_embeddings(), torch.nn.Embedding)


def test_torchs_modules_come_back_with_the_same_values_once(saved):
    path, table, _ = saved(Type.Q6_K)
    model = dali.load(path, dtype="bfloat16").model
    release(model)
    embedding = model.get_input_embeddings()
    assert type(embedding) is torch.nn.Embedding
    assert torch.equal(embedding.weight, table.bfloat16())
    assert model.lm_head.weight is embedding.weight


@pytest.mark.parametrize("name", ["gemma4", "gemma4-per-layer", "granitemoe"])
def test_scaled_embeddings_and_those_of_each_layer(name, tmp_path, monkeypatch):
    path = tmp_path / "m.gguf"
    path.write_bytes(lzma.decompress((Path(__file__).parent / "converted" / f"{name}.gguf.xz").read_bytes()))
    rewrite(path, encode=encode_as(Type.Q8_0))
    ids = torch.tensor([[0, 5, 40], [7, 7, 31]])
    packed = dali.load(path, dtype="float32").model
    monkeypatch.setenv(native.VARIABLE, "torch")
    plain = dict(dali.load(path, dtype="float32").model.named_modules())
    found = {name: module for name, module in packed.named_modules() if isinstance(module, PackedEmbedding)}
    assert len(found) == (2 if name == "gemma4-per-layer" else 1)
    for name, module in found.items():
        assert torch.equal(module(ids), plain[name](ids))


def test_memory_is_reckoned_as_it_is_taken(saved):
    path, _, _ = saved(Type.Q6_K)
    llm, source = dali.load(path), GgufModel(path)
    others = sum(b.nbytes for name, b in llm.model.named_buffers() if not name.endswith(".packed"))
    assert llm.dense_bytes - others == source.dense.memory_bytes(torch.float32, packed=True)
    held, wide = (
        source.dense.memory_bytes(torch.float32, True),
        source.dense.memory_bytes(torch.float32, False),
    )
    assert held < source.dense.nbytes * 1.2 < wide  # rows are padded to tiles
    weights = sum(layout.record_bytes * 8 for layout in llm.loaded.layouts)
    with pytest.raises(DoesNotFit, match="needs"):
        source.layouts("auto", torch.float32, 2**30 + weights + held - 1, compiled=True)
    dali.load(path, ram=2**30 + weights + held)


@pytest.mark.parametrize("part", ["token_embd", "output.weight", "blk.0.attn_k.weight"])
def test_scales_that_are_not_finite_are_refused_by_the_tensors_name(saved, part, tmp_path):
    path, _, _ = saved(Type.Q8_0, tied=False)

    def spoiled(name, values):
        if name.startswith(part):
            values.reshape(-1, 34)[5, :2] = np.frombuffer(np.float16("nan").tobytes(), np.uint8)
        return [(name, values)]

    rewrite(path, tensors=spoiled)
    with pytest.raises(DaliError, match=rf"The tensor {part}\S* in .*NaN or infinite"):
        dali.load(path)
