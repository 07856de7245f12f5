"""Embeddings that stay in their file beside experts on disk: the same bits, read row by row, and never a wrong one."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from test_gguf_families import WIDE, Mixed

import dali
from dali.errors import DaliError
from dali.fused.embedding import PackedEmbedding, StoredEmbedding
from dali.kernels import native
from dali.loading.gguf.model import GgufModel
from decoded import decoded
from gguf_models import encode_as, gguf_model, rewrite, save_gguf
from on_disk import load_on_disk

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
SMALL = WIDE | {"num_hidden_layers": 1}
IDS = torch.tensor([[0, 96, 17, 0], [16, 15, 96, 96]])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))


def save(folder: Path, kind: Type, tied: bool = False) -> tuple[Path, torch.Tensor]:
    """A file, and what the gguf package says its embeddings are."""
    encode = Mixed({"_exps": Type.Q8_0, "token_embd": kind, "output.w": Type.Q8_0, "attn": Type.Q8_0})
    path = save_gguf(gguf_model("qwen3_moe", **SMALL, tie_word_embeddings=tied), folder / "m.gguf", encode)
    return path, torch.from_numpy(encode.values["token_embd.weight"]).float()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(Type.Q8_0, "float32"), (Type.Q8_0, "bfloat16"), (Type.Q6_K, "float32"), (Type.F16, "float32")],
)
def test_rows_and_steps_have_the_same_bits(tmp_path, monkeypatch, kind, dtype):
    path, table = save(tmp_path, kind)
    wanted = decoded(dali.load(path, dtype=dtype))
    llm = load_on_disk(monkeypatch, path, 3, dtype=dtype)
    embedding = llm.model.get_input_embeddings()
    assert isinstance(embedding, StoredEmbedding)
    assert torch.equal(embedding(IDS), table.to(getattr(torch, dtype))[IDS])
    assert embedding(IDS[:0]).shape == (0, 4, table.shape[1])
    assert llm.engine.decoder is not None
    assert all(map(torch.equal, wanted, decoded(llm)))
    with pytest.raises(IndexError):
        embedding(torch.tensor([len(table)]))


def test_a_table_that_the_output_shares_is_in_memory(tmp_path, monkeypatch):
    path, _ = save(tmp_path, Type.Q8_0, tied=True)
    embedding = load_on_disk(monkeypatch, path, 3).model.get_input_embeddings()
    assert type(embedding) is PackedEmbedding
    assert GgufModel(path).dense.stored_bytes() == 0


def test_scaled_tables_and_those_of_each_layer_stay_too(tmp_path, monkeypatch):
    path = tmp_path / "m.gguf"
    name = Path(__file__).parent / "converted" / "gemma4-per-layer.gguf.xz"
    path.write_bytes(lzma.decompress(name.read_bytes()))
    rewrite(path, encode=encode_as(Type.Q8_0))
    inside = dict(dali.load(path, dtype="float32").model.named_modules())
    model = load_on_disk(monkeypatch, path, 3, dtype="float32").model
    ids = torch.tensor([[0, 5, 40], [7, 7, 31]])
    stored = {path: module for path, module in model.named_modules() if isinstance(module, StoredEmbedding)}
    assert stored
    for path, module in stored.items():
        assert torch.equal(module(ids), inside[path](ids))


def test_a_row_that_has_changed_is_never_computed_with(tmp_path, monkeypatch):
    path, table = save(tmp_path, Type.Q8_0)
    llm = load_on_disk(monkeypatch, path, 3)
    wanted = llm.generate([5, 6, 7], max_tokens=3, temperature=0, ignore_eos=True).tokens
    tensor, good = GgufModel(path).gguf.tensors["token_embd.weight"], path.read_bytes()
    at = tensor.offset + 40 * tensor.row_bytes
    with path.open("r+b") as file:  # the file itself, not another of its name
        file.seek(at + 3)
        file.write(bytes([good[at + 3] ^ 1]))
        file.flush()
        with pytest.raises(DaliError, match=r"row 40 of token_embd\.weight is not what it was"):
            llm.generate([5, 40], max_tokens=3, temperature=0, ignore_eos=True)
        file.truncate(at)
    with pytest.raises(DaliError, match=r"it ends inside row 60 of token_embd\.weight"):
        llm.generate([5, 60], max_tokens=3, temperature=0, ignore_eos=True)
    path.write_bytes(good)
    assert llm.generate([5, 6, 7], max_tokens=3, temperature=0, ignore_eos=True).tokens == wanted
    assert torch.equal(llm.model.get_input_embeddings()(torch.tensor([40]))[0], table[40])
