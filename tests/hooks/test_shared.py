from __future__ import annotations

import torch
from torch import nn

from dali.hooks.shared import early_shared


class Block(nn.Module):
    """A MoE block as DeepSeek-V2 has it: shared experts beside routed ones."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Identity()
        self.shared_experts = nn.Linear(4, 4)


class Counting(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def test_an_early_result_answers_the_models_call_once():
    model = nn.ModuleDict({"mlp": Block()})
    model["mlp"].shared_experts = shared = Counting(4, 4)
    start = early_shared(model, "mlp.experts")
    hidden = torch.randn(1, 3, 4)
    expected = nn.functional.linear(hidden, shared.weight, shared.bias)
    start(hidden.view(-1, 4))
    assert torch.equal(shared(hidden), expected)
    assert shared.calls == 1
    assert torch.equal(shared(hidden), expected)
    assert shared.calls == 2


def test_another_input_gets_its_own_answer():
    model = nn.ModuleDict({"mlp": Block()})
    shared = model["mlp"].shared_experts
    start = early_shared(model, "mlp.experts")
    start(torch.randn(3, 4))
    other = torch.randn(2, 4)
    assert torch.equal(shared(other), nn.functional.linear(other, shared.weight, shared.bias))


def test_a_block_without_shared_experts_has_nothing_to_start():
    model = nn.ModuleDict({"mlp": nn.ModuleDict({"experts": nn.Identity()})})
    assert early_shared(model, "mlp.experts") is None
