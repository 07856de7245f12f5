import pytest
from assignment_cases import BY_HAND
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.policies import create, names
from dali.policies.plan import ResidencyView
from dali.policies.prefetch import Forecast

VIEW = ResidencyView({1}, {4: 0.5}, slots=8)
PREDICTED = [2, 9, 0, 3, 7, 3, 1]  # 1 is resident, 4 in flight, 2 not expected


def choose(name="residual", predicted=PREDICTED, view=VIEW, idle=0.0, **options):
    return create("prefetch", name, **options).choose(predicted, view, BY_HAND, idle)


def test_every_policy_names_its_predictor_and_distance():
    asked = {name: create("prefetch", name).predictor for name in names("prefetch")}
    assert asked == {"residual": "residual", "ridge": "ridge", "next_gate": "next_gate", "none": None}
    assert create("prefetch", "ridge").distance == 1
    assert create("prefetch", "ridge", distance=4).distance == 4


def test_the_busiest_that_are_not_there_come_first_and_ties_by_id():
    assert choose(count=3) == (3, 5, 0)
    assert choose(count=100) == (3, 5, 0, 6)  # nobody expected, nobody fetched


@pytest.mark.parametrize(("idle", "count"), [(0.0, 0), (2.4, 0), (2.5, 1), (12.4, 2), (100.0, 4), (-3.0, 0)])
def test_by_default_it_fetches_what_the_idle_link_holds(idle, count):
    assert len(choose(idle=idle)) == count  # a copy takes 5; half of one may be late


def test_a_fixed_count_does_not_ask_the_link():
    assert len(choose(count=2, idle=0.0)) == 2


def test_free_slots_are_the_limit():
    assert choose(count=4, view=ResidencyView({1}, {4: 0.5}, slots=3)) == (3, 5)
    assert choose(count=4, view=ResidencyView({1}, {4: 0.5}, slots=1)) == ()
    assert choose(count=4, view=ResidencyView({1})) == ()


def test_none_fetches_nothing():
    assert choose("none", idle=1e9, count=5) == ()


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
    st.sets(st.integers(0, 11)),
    st.sets(st.integers(0, 11)),
    st.integers(0, 12),
    st.integers(0, 12),
)
def test_no_expert_left_out_is_expected_to_be_busier(predicted, resident, flying, slots, count):
    view = ResidencyView(resident - flying, dict.fromkeys(flying, 1.0), slots)
    chosen = choose(predicted=predicted, view=view, count=count)
    left_out = set(range(len(predicted))) - resident - flying - set(chosen)
    assert len(set(chosen)) == len(chosen) <= max(0, min(count, slots - len(flying)))
    assert not set(chosen) & (resident | flying)
    assert all(predicted[expert] > 0 for expert in chosen)
    assert [(-predicted[e], e) for e in chosen] == sorted((-predicted[e], e) for e in chosen)
    if len(chosen) < min(count, slots - len(flying)):
        assert not any(predicted[expert] for expert in left_out)
    elif chosen:
        assert all(predicted[expert] <= predicted[chosen[-1]] for expert in left_out)


def plan(*forecasts, **options):
    return create("prefetch", "residual", **options).plan([Forecast(*one) for one in forecasts], BY_HAND)


def test_layers_ahead_share_the_slots_and_the_idle_link():
    near, far = (3, PREDICTED, VIEW, 10.0), (4, PREDICTED, ResidencyView(set(), slots=8), 20.0)
    assert plan(near) == [(3, 3), (3, 5)]
    assert plan(near, far) == [(3, 3), (3, 5), (4, 1), (4, 4)]  # a copy takes 5
    few = (4, PREDICTED, ResidencyView(set(), slots=3), 99.0)
    assert plan(near, few) == [(3, 3), (3, 5), (4, 1)]
    assert plan(near, far, count=1) == [(3, 3), (4, 1)]
    assert plan() == []


def test_only_policies_without_a_predictor_foresee():
    assert create("prefetch", "none").foresee(0, [1, 2]) == ()
