"""Sizes told from headers alone against what loading finds with transformers' help."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

import dali
from dali.doctor import checkpoint, gguf
from dali.doctor.outline import read_outline
from dali.errors import DaliError
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import get_format
from dali.loading.budget import count_dense_bytes
from dali.loading.gguf.model import GgufModel
from dali.loading.safetensors import SafetensorsModel
from dali.offload.vram import state_size
from dali.step.size import Reservation
from families import FAMILIES, random_model, save_fp8_model, save_model, save_mxfp4_model
from gguf_models import gguf_model, rewrite, save_gguf

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
