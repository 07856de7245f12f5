from hypothesis import given, settings
from hypothesis import strategies as st

from dali.policies.cache import Swap
from dali.policies.guard import CopiedSwaps, Guard


def feed(guard, cost, benefit, steps):
    for _ in range(steps):
        guard.note(cost, benefit)
    return guard.on


def test_what_pays_stays_on():
    assert feed(Guard(window=4), cost=1.0, benefit=2.0, steps=1000)


def test_what_never_pays_is_stopped_after_one_window():
    guard = Guard(window=4)
    assert feed(guard, 1.0, 0.0, 3)
    assert not feed(guard, 1.0, 0.0, 1)


def test_doing_nothing_wins_in_the_long_run():
    guard, busy = Guard(window=10, rest=20, longest_rest=1000), 0
    for _ in range(100_000):
        busy += guard.on
        guard.note(1.0, 0.5)
    # Rests of 20, 40, ... 640, then 1000 each: about 105 trials of 10 steps.
    assert 900 < busy < 1200


def test_a_trial_must_bring_more_than_it_costs():
    assert not feed(Guard(window=4, margin=0.1), 1.0, 1.05, 4)
    assert feed(Guard(window=4, margin=0.1), 1.0, 1.15, 4)


def test_what_is_on_stays_on_through_a_small_loss():
    guard = Guard(window=4, margin=0.1)
    assert feed(guard, 1.0, 2.0, 4)
    assert feed(guard, 1.0, 0.95, 4)  # within the margin
    assert not feed(guard, 1.0, 0.85, 4)


def test_it_tries_again_after_a_rest_and_rests_longer_after_each_failure():
    guard, switches = Guard(window=2, rest=3, longest_rest=8), []
    for _ in range(40):
        switches.append(guard.on)
        guard.note(1.0, 0.0)
    text = "".join("#" if on else "." for on in switches)
    assert text == "##" + "." * 3 + "##" + "." * 6 + "##" + "." * 8 + "##" + "." * 8 + "##" + "." * 5


def test_a_success_makes_the_next_rest_short_again():
    guard = Guard(window=2, rest=3, longest_rest=100)
    feed(guard, 1.0, 0.0, 2 + 3 + 2 + 6)  # two failures and their rests
    assert guard.on
    assert feed(guard, 1.0, 5.0, 2)  # a success
    assert not feed(guard, 1.0, 0.0, 2)
    assert feed(guard, 0.0, 0.0, 3)


def test_what_costs_nothing_is_let_be():
    assert feed(Guard(window=2), 0.0, 0.0, 100)


def test_samples_during_a_rest_do_not_count():
    guard = Guard(window=2, rest=4)
    assert not feed(guard, 1.0, 0.0, 2)
    assert feed(guard, 100.0, 0.0, 4)  # what was under way when it stopped
    assert feed(guard, 1.0, 2.0, 2)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e3)), max_size=300), st.integers(1, 8))
def test_it_is_never_off_for_longer_than_the_longest_rest(samples, window):
    guard, off = Guard(window=window, rest=2, longest_rest=16), 0
    for cost, benefit in samples:
        guard.note(cost, benefit)
        off = 0 if guard.on else off + 1
        assert off <= 16


def test_without_copied_swaps_others_would_be_there():
    swaps = CopiedSwaps()
    assert swaps.undone({0, 1}) == set()
    swaps.note(Swap(0, 5), copied=True)
    assert swaps.undone({5, 1}) == {0, 1}
    swaps.note(Swap(5, 6), copied=True)  # 6 sits where 0 would
    assert swaps.undone({6, 1}) == {0, 1}
    swaps.note(Swap(1, 7), copied=False)  # would have been made anyway
    assert swaps.undone({6, 7}) == {0, 7}
    swaps.note(Swap(7, 0), copied=True)  # 0 is back, in another's place
    assert swaps.undone({6, 0}) == {0, 7}
    swaps.note(Swap(0, 8), copied=True)
    assert swaps.undone({6, 8}) == {0, 7}


def test_a_swap_that_was_free_undoes_the_copy_it_replaces():
    swaps = CopiedSwaps()
    swaps.note(Swap(0, 5), copied=True)
    swaps.note(Swap(5, 6), copied=False)
    assert swaps.undone({6, 1}) == set()
