"""The memory that answers may take for what they keep."""

from __future__ import annotations

import pytest

import dali
from dali.serve import memory
from dali.serve.memory import HEADROOM, limit_states, side_by_side

# Of the bundled model: keys and values of 2 heads of 32 in 8 layers, in bfloat16 or float32.
TOKEN = 2 * 2 * 32 * 8


@pytest.fixture
def unlimited(tiny_llm):
    before = tiny_llm.engine.budget
    tiny_llm.engine.limit_states(None)
    yield tiny_llm
    tiny_llm.engine.limit_states(before)


def test_what_is_free_is_shared_by_all(unlimited, monkeypatch):
    kept = unlimited.engine.prefixes.tree.budget  # the prefix cache's
    monkeypatch.setattr(memory, "available_ram", lambda: HEADROOM + kept + 2**30)
    budget = limit_states(unlimited, None)
    assert budget.nbytes == 2**30
    assert unlimited.engine.budget is budget
    assert side_by_side(unlimited, budget) in (2**30 // (512 * TOKEN * width) for width in (2, 4))
    assert limit_states(unlimited, 5) is budget  # once it is there, as an accelerator's is, it stays


@pytest.mark.parametrize("ram", [0, None])
def test_one_whole_context_fits_whatever_is_free(unlimited, monkeypatch, ram):
    monkeypatch.setattr(memory, "available_ram", lambda: 0)
    assert side_by_side(unlimited, limit_states(unlimited, ram)) == 1
    sequences = [
        unlimited.sequence("Once", temperature=0, max_tokens=None, ignore_eos=True) for _ in range(2)
    ]
    live = []
    unlimited.loop.complete(sequences, after_step=lambda _: live.append(len(unlimited.engine.scheduler.live)))
    assert max(live) == 1
    assert sequences[0].tokens == sequences[1].tokens
    assert len(sequences[0].tokens) == 512


def test_of_a_simulated_accelerator_both_its_memory_and_this_machines_hold(dali_tiny, monkeypatch):
    with dali.load(str(dali_tiny), device="sim:paper", vram=0, prefetch="none", parallel=3) as llm:
        device = llm.engine.budget.nbytes
        monkeypatch.setattr(memory, "available_ram", lambda: 2**40)
        assert limit_states(llm, None).nbytes == device
        assert side_by_side(llm, llm.engine.budget) == 3
        monkeypatch.setattr(memory, "available_ram", lambda: 0)
        assert side_by_side(llm, limit_states(llm, None)) == 1
