from __future__ import annotations

import pytest
import torch

from dali.devices import SimDevice
from dali.runtime import workspace
from dali.runtime.workspace import Workspace

CPU = torch.device("cpu")


class Pinning(SimDevice):
    def __init__(self) -> None:
        super().__init__(0)
        self.pinned: list[int] = []

    def pin(self, tensor: torch.Tensor) -> None:
        self.pinned.append(len(tensor))


def test_a_buffer_is_made_once_and_has_the_size_asked_for() -> None:
    kept = Workspace(SimDevice(0))
    first = kept.take("rows", 3, 5, torch.float32, CPU)
    assert (first.tensor.shape, first.nbytes, first.bytes.shape) == ((3, 5), 60, (60,))
    assert kept.take("rows", 3, 5, torch.float32, CPU) is first


def test_all_buffers_of_a_name_are_the_same_memory_until_it_grows() -> None:
    kept = Workspace(SimDevice(0))
    small, large = (kept.take("rows", rows, 5, torch.float32, CPU) for rows in (3, 4))
    assert small.key == large.key
    larger = kept.take("rows", 5, 5, torch.float32, CPU)
    assert larger.key != large.key
    assert kept.take("rows", 3, 5, torch.float32, CPU).key == larger.key


def test_names_and_types_have_their_own() -> None:
    kept = Workspace(SimDevice(0))
    one = kept.take("below", 2, 4, torch.bfloat16, CPU)
    assert kept.take("packed", 2, 4, torch.bfloat16, CPU).key != one.key
    assert kept.take("below", 2, 4, torch.float32, CPU).tensor.dtype == torch.float32


def test_host_memory_is_page_locked_whenever_it_is_made() -> None:
    device = Pinning()
    kept = Workspace(device)
    for rows in (1, 1, 3, 4, 9, 2):
        kept.take("below", rows, 4, torch.float32, CPU)
    assert device.pinned == [1, 4, 16]


def test_a_limited_number_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "REMEMBERED", 10)
    kept = Workspace(SimDevice(0))
    for rows in range(1, 100):
        assert len(kept.take("rows", rows, 4, torch.float32, CPU).tensor) == rows
        assert len(kept._buffers) <= 10
