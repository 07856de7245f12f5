"""What an experts module runs in dali's place for it, and who may see that."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dali.errors import DaliError
from dali.hooks import seam
from families import random_model


def test_a_module_has_the_layer_that_was_set_and_no_part_more():
    module = nn.Linear(2, 2)
    assert seam.dali_layer(module) is None
    layer = nn.Linear(3, 3)  # itself a module, as a policy's own layer may be
    seam.set_dali_layer(module, layer)
    assert seam.dali_layer(module) is layer
    assert list(module.children()) == []
    assert set(module.state_dict()) == {"weight", "bias"}


def test_an_experts_module_runs_its_layer_and_says_what_is_missing_without_one():
    model = random_model("mixtral")
    module = next(iter(seam.experts_modules(model).values()))
    model.set_experts_implementation(seam.IMPLEMENTATION)
    hidden, ids, weights = torch.ones(1, 64), torch.zeros(1, 2).long(), torch.ones(1, 2)
    with pytest.raises(DaliError, match="no dali experts"):
        module(hidden, ids, weights)
    seam.set_dali_layer(module, lambda hidden, ids, weights: hidden * 3)
    assert torch.equal(module(hidden, ids, weights), hidden * 3)
