"""Sizes told from headers alone against what loading finds with transformers' help."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

import dali
from dali.doctor import checkpoint, gguf
from dali.doctor.outline import read_outline
from dali.doctor.plan import Free, make_plan
from dali.errors import DaliError
from dali.kernels import native
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import get_format
from dali.loading.budget import count_dense_bytes
from dali.loading.gguf.model import GgufModel
from dali.loading.safetensors import SafetensorsModel
from dali.offload.vram import state_size
from dali.options import LoadOptions
from dali.step.size import Reservation
from families import FAMILIES, random_model, save_fp8_model, save_model, save_mxfp4_model
from gguf_models import encode_as, gguf_model, rewrite, save_gguf

CONVERTED = Path(__file__).parents[1] / "loading" / "gguf" / "converted"
CLOSE = 0.03  # corrections of routers and such, which headers do not tell from weights


def saved(family: str, folder: Path) -> Path:
    if family == "gpt_oss in mxfp4":
        return save_mxfp4_model(folder)
    if family == "fp8":
        save_fp8_model(folder)
        return folder
    return save_model(random_model(family), folder)


@pytest.mark.parametrize("family", [*FAMILIES, "gpt_oss in mxfp4", "fp8"])
def test_a_checkpoint_is_as_large_as_loading_finds(family, tmp_path):
    path = saved(family, tmp_path / "model")
    sizes = checkpoint.sizes_of(read_outline(path))
    source = SafetensorsModel(path)
    module = source.modules[0]
    assert (sizes.moe_layers, sizes.experts, sizes.top_k) == (
        len(source.modules),
        module.experts,
        source.calls.top_k,
    )
    for name in ("w8", "w4", "f32", "bf16"):
        layout = ExpertLayout(module.shape, get_format(name))
        assert [one.record for one in sizes.layouts(name)] == [layout.record_bytes] * len(source.modules)
    dtype = source.dtype("auto", compiled=True)
    assert str(dtype) == f"torch.{sizes.dtype}"
    dense = count_dense_bytes(source.skeleton, dtype)
    assert sizes.dense_bytes(sizes.dtype, packed=False) == pytest.approx(dense, rel=CLOSE)
    llm = dali.load(path, quant="w8" if family != "gpt_oss in mxfp4" else "mxfp4")
    keeps, told = state_size(llm.engine), sizes.states(sizes.dtype, in_q8=False)
    for tokens in (16, 64):
        reservation = Reservation(tokens, 8)
        assert told.nbytes(reservation) == keeps.nbytes(reservation)


def dense_of(path: Path, sizes) -> tuple[int, int]:
    """Bytes of everything but experts that are told, and that are there once it is loaded."""
    told = make_plan(sizes, LoadOptions(ctx_size=64), Free(2**34), compiled=True).dense
    with dali.load(path, ctx_size=64) as llm:
        return told, llm.dense_bytes


@pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
@pytest.mark.parametrize("tied", [False, True])
def test_packed_embeddings_are_told_as_they_lie_in_memory(tmp_path, tied):
    model = gguf_model("qwen3_moe", tie_word_embeddings=tied)
    path = save_gguf(model, tmp_path / "m.gguf", encode_as(GGMLQuantizationType.Q8_0))
    told, there = dense_of(path, gguf.sizes_of(read_outline(path)))
    assert told == pytest.approx(there, rel=0.005)  # but for the frequencies of positions


@pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
def test_a_head_that_is_packed_beside_the_embeddings_it_is_made_of_is_told(dali_tiny):
    sizes = checkpoint.sizes_of(read_outline(dali_tiny))
    told, there = dense_of(dali_tiny, sizes)
    assert told == pytest.approx(there, rel=0.005)
    (head,) = sizes.tied
    assert sizes.read_dense(head, "float32", packed=True)[0] == "w8"


NAMES = sorted(path.name.removesuffix(".gguf.xz") for path in CONVERTED.glob("*.xz"))


@pytest.mark.parametrize("name", NAMES)
def test_a_gguf_file_is_as_large_as_loading_finds(name, tmp_path):
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(lzma.decompress((CONVERTED / f"{name}.gguf.xz").read_bytes()))
    sizes = gguf.sizes_of(read_outline(path))
    source = GgufModel(path)
    source.__dict__["modules"] = modules(source)
    layouts = source.experts.layouts(None)
    assert (sizes.moe_layers, sizes.experts) == (len(source.modules), source.modules[0].experts)
    assert [one.record for one in sizes.layouts("auto")] == [one.record_bytes for one in layouts]
    for packed in (False, True):
        import torch

        dense = source.dense.memory_bytes(torch.float32, packed)
        assert sizes.dense_bytes("float32", packed) == pytest.approx(dense, rel=CLOSE)


def modules(source: GgufModel):
    """Without asking how its layers are called, which some of these models are refused by."""
    from dali.hooks import seam

    return seam.describe_model(source.skeleton, source.name)


@pytest.mark.parametrize(
    ("key", "value"),
    [("block_count", 2**31), ("block_count", 2), ("expert_used_count", 0), ("expert_used_count", 9)],
)
def test_a_header_that_lies_is_refused_in_the_words_of_loading(tmp_path, key, value):
    path = save_gguf(gguf_model("qwen3_moe"), tmp_path / "m.gguf")
    rewrite(path, {f"qwen3moe.{key}": value})
    with pytest.raises(DaliError) as told:
        gguf.sizes_of(read_outline(path))
    with pytest.raises(DaliError) as loading:
        _ = GgufModel(path).config
    assert str(told.value) == str(loading.value)
