"""Threads that pack: one thread of torch's each, and torch's setting as it was afterwards."""

from __future__ import annotations

import threading

import pytest
import torch

from dali.store.workers import workers


@pytest.fixture
def _three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_three_threads")
def test_each_uses_one_of_torch_s_threads():
    with workers(2, "dali-test") as pool:
        assert list(pool.map(lambda _: torch.get_num_threads(), range(4))) == [1] * 4
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("_three_threads")
def test_a_failure_leaves_no_thread_and_begins_no_further_job():
    started, cancelled, begun = threading.Event(), threading.Event(), []

    def wait() -> None:
        started.set()
        cancelled.wait(60)

    def fail() -> None:
        with workers(1, "dali-test") as pool:
            pool.submit(wait)
            pool.submit(begun.append, 1).add_done_callback(lambda job: cancelled.set())
            started.wait(60)
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        fail()
    assert not begun
    assert torch.get_num_threads() == 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dali-test")]
