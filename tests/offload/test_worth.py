from types import SimpleNamespace
from typing import Any

import pytest

from dali.errors import parameter
from dali.hardware import profile as profiles
from dali.hardware.cost import CostModel, ExpertSize
from dali.offload.worth import tell_loss


def told(hidden: int) -> list[str]:
    """What is said of a model of two layers with eight such experts, two a token, none of them resident; its dense part is as
    large as an expert a layer."""
    weights = 3 * hidden * hidden
    size = ExpertSize(hidden, hidden, 3, {"w8": weights})
    costs = CostModel(profiles.load("egpu-x4"), size, "w8", 16)
    loaded: Any = SimpleNamespace(pool=SimpleNamespace(layers=2, experts=8), top_k=2)
    residency: Any = SimpleNamespace(resident_slots=0, scratch_slots=4)
    notes: list[str] = []
    tell_loss(loaded, "gpu", costs, residency, (2 * weights, 2 * weights, 14), notes.append)
    return notes


def test_a_loss_is_said_with_both_times() -> None:
    (note,) = told(64)  # 12 KB an expert: launches and waits take longer than computing
    assert note.startswith("By the profile egpu-x4 a token is modelled to take ")
    assert " ms with gpu, and " in note
    assert note.endswith(f" ms on the CPU alone. Leave {parameter('device')} out, or try both.")


@pytest.mark.parametrize("hidden", [2048, 4096])
def test_nothing_is_said_of_a_gain(hidden: int) -> None:
    assert told(hidden) == []
