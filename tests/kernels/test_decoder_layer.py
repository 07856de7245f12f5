"""A whole decoder layer in one call: where its experts lie is told in every call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dali.kernels import native
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape, ExpertWeights
from dali.kernels.formats import FORMATS
from dali.kernels.packing import pack

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
HIDDEN, INNER, EXPERTS, WIDTH = 64, 96, 5, 32
LAYOUT = ExpertLayout(ExpertShape(HIDDEN, INNER, Activation("silu")), FORMATS["w8"])


def experts() -> Tensor:
    memory = torch.zeros(EXPERTS, LAYOUT.record_bytes, dtype=torch.uint8)
    for record in memory:
        inner = torch.randn(INNER, HIDDEN), torch.randn(INNER, HIDDEN)
        LAYOUT.pack(ExpertWeights(*inner, torch.randn(HIDDEN, INNER)), record)
    return memory


def decoder_layer() -> native.DecoderLayer:
    weights = [torch.randn(HIDDEN, HIDDEN) for _ in range(4)]
    linears = [native.Linear(pack(w, FORMATS["f32"]), HIDDEN, HIDDEN, FORMATS["f32"]) for w in weights]
    rotary = native.Rotary("halves", WIDTH, WIDTH, torch.float32)
    projections = native.Projections(*linears[:3], WIDTH)
    attention = native.Attention(projections, linears[3], rotary, 0.2)
    norm = (torch.ones(HIDDEN), 1e-6)
    norms = native.LayerNorms(before_attention=norm, before_mlp=norm)
    routing = native.Routing(2, torch.float32, normalise=True)
    router = native.Router(torch.randn(EXPERTS, HIDDEN), routing)
    return native.DecoderLayer(HIDDEN, torch.float32, norms, attention, (router, LAYOUT))


def decode(layer: native.DecoderLayer, records: list[Tensor]) -> Tensor:
    torch.manual_seed(1)
    keys, values = torch.zeros(2, 1, WIDTH), torch.zeros(2, 1, WIDTH)
    token = (0, keys.data_ptr(), values.data_ptr(), 1, 0, 0, False)
    turn = torch.ones(1, 1, WIDTH)
    held = native.ExpertRecords(LAYOUT, records)
    out, [(active, _)] = native.decode_layers(
        [layer], [held], torch.randn(1, 1, HIDDEN), turn, turn * 0, [([(token, 1, 0)], [])]
    )
    assert active == 2
    return out


def test_experts_are_read_where_the_call_says() -> None:
    torch.manual_seed(0)
    layer, memory = decoder_layer(), experts()
    expected = decode(layer, list(memory))
    moved = memory.clone()
    memory.zero_()
    assert torch.equal(decode(layer, list(moved)), expected)
    assert not torch.equal(decode(layer, list(moved.flip(0))), expected)


def test_a_choice_without_a_record_is_refused() -> None:
    torch.manual_seed(0)
    layer, memory = decoder_layer(), experts()
    with pytest.raises(IndexError, match="router chose an expert that is not there"):
        decode(layer, list(memory[:1]))
