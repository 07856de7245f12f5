"""For all tests of the runtime."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def as_many_threads_as_ever() -> Iterator[None]:
    """torch's products round by the number of its threads, which loading a model elsewhere changes; what a device computes is
    held here to results that earlier tests kept (tiny_runtime.expected)."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
