"""What a watch takes for a change, and what it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dali.fused.watch import Watch


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU())).requires_grad_(False)


def hook(watched: nn.Sequential) -> None:
    watched[1][1].register_forward_pre_hook(lambda *given: None)


def forward(watched: nn.Sequential) -> None:
    watched[0].forward = lambda x: x


def module(watched: nn.Sequential) -> None:
    watched[1][0] = nn.Linear(2, 2)


def parameter(watched: nn.Sequential) -> None:
    watched[0].weight = nn.Parameter(torch.ones(2, 2))


def memory(watched: nn.Sequential) -> None:
    watched[0].weight.data = watched[0].weight.data.clone()


@pytest.mark.parametrize("change", [hook, forward, module, parameter, memory])
def test_a_change_is_seen(change):
    watched = model()
    watch = Watch(watched)
    assert watch.untouched
    change(watched)
    assert not watch.untouched


def test_running_and_values_in_place_are_no_change():
    watched = model()
    watch = Watch(watched)
    watched(torch.ones(1, 2))
    watched[0].weight.mul_(2)
    assert watch.untouched


def test_a_hook_on_all_modules_is_seen_while_it_is_there():
    watch = Watch(model())
    handle = nn.modules.module.register_module_forward_hook(lambda *given: None)
    assert not watch.untouched
    handle.remove()
    assert watch.untouched


def test_the_memory_of_a_parameter_that_is_gone_stays():
    watched = model()
    weight = watched[0].weight
    address, values = weight.data_ptr(), weight.clone()
    watch = Watch(watched)
    del weight
    watched[0].weight = nn.Parameter(torch.zeros(2, 2))
    kept = [held for held in watch._memory if held.data_ptr() == address]
    assert len(kept) == 1
    assert torch.equal(kept[0], values)
