"""Counting and ordering (token, choice) pairs, compiled and not."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dali import compiled
from dali.kernels import native
from dali.kernels.pairs import count_pairs, order_pairs, pairs_by_expert

EXPERTS = 9

were_compiled = pytest.mark.skipif(not compiled.AVAILABLE, reason="the kernels were not compiled")


@pytest.mark.parametrize(
    "by", [pytest.param(compiled.library, marks=were_compiled), None], ids=["compiled", "torch"]
)
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_pairs_come_by_expert_and_ascending(by: object, data: st.DataObject) -> None:
    tokens, top_k = data.draw(st.integers(0, 20)), data.draw(st.integers(1, 4))
    expert = st.integers(0, EXPERTS - 1)
    flat = data.draw(st.lists(expert, min_size=tokens * top_k, max_size=tokens * top_k))
    order = data.draw(st.permutations(sorted(set(flat))))
    ids = torch.tensor(flat, dtype=torch.int64).view(tokens, top_k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "in_use", by)
        workload = count_pairs(ids, EXPERTS)
        pairs, offsets = order_pairs(ids, workload, order)
        active, by_expert, begins = pairs_by_expert(ids, EXPERTS)
    assert workload == [flat.count(expert) for expert in range(EXPERTS)]
    assert (offsets[0], offsets[-1], len(pairs)) == (0, len(flat), len(flat))
    for expert, (begin, end) in zip(order, pairwise(offsets), strict=True):
        assert pairs[begin:end].tolist() == [pair for pair, chosen in enumerate(flat) if chosen == expert]
    assert active == sorted(set(flat))
    assert by_expert.tolist() == sorted(range(len(flat)), key=flat.__getitem__)
    assert begins == [sum(chosen < expert for chosen in flat) for expert in active] + [len(flat)]


@were_compiled
def test_ids_and_plans_that_cannot_be_are_refused() -> None:
    ids = torch.tensor([[0, 2]])
    with pytest.raises(IndexError, match="router"):
        native.count_pairs(ids, 2)
    with pytest.raises(IndexError, match="plan"):
        native.order_pairs(ids, 3, [0, 3])
    for plan in ([0], [0, 0, 2]):
        with pytest.raises(ValueError, match="leaves out or repeats"):
            native.order_pairs(ids, 3, plan)
