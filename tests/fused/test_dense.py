"""Dense modules on the native kernels: what is replaced, what is left alone, and that results stay what they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dali
from dali.fused import dense
from dali.fused.router import FusedRouter
from dali.hooks import seam
from dali.kernels import native
from dali.kernels.formats import get_format
from dali.kernels.packing import pack, unpack
from decoding_families import decoding_model
from families import FAMILIES, random_model, save_model

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
W8 = get_format("w8")


def count(model: nn.Module, kind: type) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv(native.VARIABLE, raising=False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_linear_computes_with_the_weights_w8_keeps(bias, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(70, 1100, bias=bias).to(dtype)).requires_grad_(False)
    kept = unpack(pack(model[0].weight, W8), 1100, 70, W8)
    x = torch.randn(2, 3, 70).to(dtype)
    expected = nn.functional.linear(x.float(), kept, model[0].bias.float() if bias else None)
    dense.pack_linears(model, W8)
    out = model(x)
    assert isinstance(model[0], dense.PackedLinear)
    assert (out.dtype, out.shape) == (dtype, (2, 3, 1100))
    assert float((out.float() - expected).norm() / expected.norm()) < 0.01


def test_few_rows_and_routers_stay_exact():
    model = random_model("qwen2_moe", num_experts=64, shared_expert_intermediate_size=96)
    dense.pack_linears(model, W8)
    left = {name.rpartition(".")[2] for name, module in model.named_modules() if type(module) is nn.Linear}
    assert "shared_expert_gate" in left
    assert count(model, dense.PackedLinear) > 0
    assert len(seam.routers(model, 64) or ()) == 2


def test_what_is_inside_a_router_stays_exact():
    model = decoding_model("hunyuan_v1_moe", num_experts=16)
    dense.pack_linears(model, W8)
    left = {name.rpartition(".")[2] for name, module in model.named_modules() if type(module) is nn.Linear}
    assert left == {"wg"}


def test_a_tied_output_layer_gets_a_copy_and_the_embeddings_stay():
    model = random_model("olmoe", tie_word_embeddings=True)
    before = model.get_input_embeddings().weight.clone()
    dense.pack_linears(model, W8)
    assert isinstance(model.lm_head, dense.PackedLinear)
    assert torch.equal(model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_familys_norms_are_fused_and_agree(family, dtype):
    model = random_model(family, dtype=dtype).requires_grad_(False)
    norms = [module for name, module in model.named_modules() if type(module).__name__.endswith("RMSNorm")]
    x = {norm: torch.randn(5, norm.weight.numel()).to(dtype) for norm in norms}
    expected = [norm(x[norm]) for norm in norms]
    dense.fuse_norms(model)
    fused = [module for module in model.modules() if isinstance(module, dense.FusedRMSNorm)]
    assert len(fused) == len(norms)
    for norm, module, wanted in zip(norms, fused, expected, strict=True):
        torch.testing.assert_close(module(x[norm]), wanted)


class OffsetRMSNorm(nn.Module):
    """Weights count from `offset`: from one in Qwen3-Next's."""

    def __init__(self, offset: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.offset, self.weight, self.eps = offset, nn.Parameter(torch.rand(32, dtype=dtype)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return (normed * (self.offset + self.weight.float())).type_as(x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_layer_of_a_trained_model_is_fused(dtype):
    """Weights far from 1 and sums of hundreds differ by more than one rounding from torch's."""
    model = dali.load("dali-tiny", quant="w8", dtype=dtype).model
    norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]
    assert len(norms) == 33
    assert all(isinstance(norm, dense.FusedRMSNorm) for norm in norms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_whose_weights_count_from_one_is_rounded_once(dtype):
    norm = OffsetRMSNorm(1.0, dtype)
    model = nn.Sequential(norm)
    dense.fuse_norms(model)
    assert isinstance(model[0], dense.FusedRMSNorm)
    x = torch.randn(50, 32).to(dtype)
    differ = (model(x) != norm(x)).float().mean()
    torch.testing.assert_close(model(x), norm(x))
    assert dtype == torch.float32 or differ < 0.02  # by the order of sums alone


def test_a_norm_of_another_formula_is_left_alone():
    model = nn.Sequential(OffsetRMSNorm(1.5))
    dense.fuse_norms(model)
    assert isinstance(model[0], OffsetRMSNorm)


@pytest.mark.parametrize(("quant", "packed"), [("w8", True), ("w4", True), ("f32", False), ("bf16", False)])
def test_dense_weights_are_packed_where_experts_are_quantized(tmp_path, quant, packed):
    directory = save_model(random_model("olmoe"), tmp_path / "model")
    llm = dali.load(directory, quant=quant)
    assert (count(llm.model, dense.PackedLinear) > 0) == packed
    assert len(llm.generate([3, 4, 5], max_tokens=3, ignore_eos=True).tokens) == 3


def test_torchs_kernels_leave_the_model_as_it_is(tmp_path, monkeypatch):
    directory = save_model(random_model("olmoe"), tmp_path / "model")
    monkeypatch.setenv(native.VARIABLE, "torch")
    llm = dali.load(directory, quant="w8")
    assert not any(count(llm.model, kind) for kind in (dense.PackedLinear, dense.FusedRMSNorm, FusedRouter))
