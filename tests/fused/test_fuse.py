"""The one door: everything that can be fused is, and linears are packed only where a format is given."""

from __future__ import annotations

import pytest
from test_fused_attention import load
from torch import nn

from dali import fused
from dali.fused.attention import DecodingAttention
from dali.fused.dense import FusedRMSNorm, PackedLinear
from dali.fused.layer import DecodingLayer
from dali.fused.router import FusedRouter
from dali.kernels import native
from dali.kernels.formats import get_format
from families import random_model

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")


def kinds(model: nn.Module) -> dict[str, int]:
    """How many modules, or their forwards, are of each of the fused kinds."""
    every = (PackedLinear, FusedRMSNorm, FusedRouter, DecodingAttention, DecodingLayer)
    parts = [part for module in model.modules() for part in (module, module.forward)]
    return {kind.__name__: sum(isinstance(part, kind) for part in parts) for kind in every}


@pytest.fixture
def model(tmp_path, monkeypatch) -> nn.Module:
    """As loaded, before anything is fused."""
    with monkeypatch.context() as patch:
        patch.setattr("dali.fused.fuse", lambda model, linears, losses=None: None)
        return load(tmp_path, monkeypatch, random_model("olmoe")).model


def test_a_plain_model_is_fused_as_a_whole(model):
    assert set(kinds(model).values()) == {0}
    assert fused.fuse(model, get_format("w8")) is not None
    assert kinds(model) == {
        "PackedLinear": 4 * 3 + 1,
        "FusedRMSNorm": 4 * 3 + 1,
        "FusedRouter": 3,
        "DecodingAttention": 3,
        "DecodingLayer": 3,
    }


def test_without_a_format_linears_stay_and_so_do_attention_and_layers(model):
    assert fused.fuse(model, None) is None
    assert kinds(model) == {
        "PackedLinear": 0,
        "FusedRMSNorm": 4 * 3 + 1,
        "FusedRouter": 3,
        "DecodingAttention": 0,
        "DecodingLayer": 0,
    }
