import pytest

from dali import systems
from dali.systems.moe_lightning import Plan, plan, roofline
from policies.assignment_cases import BY_HAND


@pytest.mark.parametrize(
    ("top_k", "tokens", "resident", "seconds"),
    [
        (1, 4, 2, 10),  # 2 copies of 5 against 4 experts with a token each
        (1, 4, 4, 4),
        (1, 1, 2, 10),  # absent ones are paged whether routed to or not
        (2, 3, 4, 8),  # 1.5 tokens an expert: 2
    ],
)
def test_the_roofline(top_k, tokens, resident, seconds):
    assert roofline(BY_HAND, 4, top_k, tokens, resident) == seconds


def test_the_planner_trades_residents_for_batch():
    # Batches 1, 2, 4, 8 leave 3, 3, 2, 0 residents: 5, 5, 10, 20 seconds; three give .4 tokens a second, the smallest wins.
    assert plan(BY_HAND, 4, 1, slots=4, slots_a_token=0.5, batches=(1, 2, 4, 8)) == Plan(2, 3, 5)
    assert plan(BY_HAND, 4, 1, slots=2, slots_a_token=0, batches=(1, 2, 4)) == Plan(4, 2, 10)


def test_the_planner_says_when_nothing_fits():
    with pytest.raises(ValueError, match=r"1 slots hold .* none of the batches \(2, 4\)"):
        plan(BY_HAND, 4, 1, slots=1, slots_a_token=1, batches=(2, 4))


def test_the_next_layer_is_paged_in():
    policies = systems.get("moe-lightning").create(2, 4, 1, 2)
    assert policies.prefetch.foresee(0, [1, 0, 0, 0]) == [(1, [1, 1, 1, 1])]
    assert policies.prefetch.foresee(1, [1, 0, 0, 0]) == []
