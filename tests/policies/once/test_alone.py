import pytest

from dali.hardware.cost import ExpertCosts
from dali.policies.once.alone import MARGIN, experts_seconds, loses


def costs(link, cpu=3.0, gpu=1.0):
    """Seconds by tokens are in proportion; nothing else takes time."""
    return ExpertCosts([0.0, cpu, 2 * cpu], [0.0, gpu, 2 * gpu], link, link, launch=0.0)


@pytest.mark.parametrize(("resident", "seconds"), [(0, 6.0), (4, 2.0), (2, (6 + 4 * 3 + 2) / 6)])
def test_chance_hits_count_by_their_odds(resident, seconds):
    # Two of four experts a token, no copy in time. Both on the CPU take 6, one on each side 3, both resident 2; of two residents
    # one pair of six is both, one neither, four are one of each.
    assert experts_seconds(costs(link=100.0), 4, 2, resident, slots=2) == pytest.approx(seconds)


def test_experts_may_be_copied_in_time():
    # Nothing is resident: one is copied in 1 and computed in 1, while the CPU takes 3 for the other.
    assert experts_seconds(costs(link=1.0), 4, 2, 0, slots=2) == pytest.approx(3.0)


@pytest.mark.parametrize(("resident", "seconds"), [(0, 12.0), (4, 3.0)])
def test_several_tokens_share_experts(resident, seconds):
    # Two tokens of two experts each meet three of four on average: one of them twice. Where all are there, the CPU takes one.
    assert experts_seconds(costs(link=100.0), 4, 2, resident, slots=2, tokens=2) == pytest.approx(seconds)


def test_little_more_is_no_loss():
    assert not loses(MARGIN * 2.0, 2.0)
    assert loses(MARGIN * 2.01, 2.0)
