import pytest

from dali import systems
from dali.policies.cache import Swap
from dali.policies.plan import LayerPlan, ResidencyView
from dali.systems._prompt import Prompt
from dali.systems.freetoken import Assign, Cache, split
from policies.assignment_cases import BY_HAND
from systems.player import step

START = ((0, 1), (0, 1))


class Placed(Cache):
    def initial(self, layer):
        return START[layer]


@pytest.mark.parametrize(("misses", "copied"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (9, 4)])
def test_link_and_cpu_share_the_misses(misses, copied):
    # A copy takes 5, an expert on the CPU 4. 3: 1 copy and 2 experts take 8, 2 copies 10. 4: 12 or 10.
    assert split(misses, BY_HAND) == copied


def test_one_lru_over_all_layers():
    cache = Placed(2, 4, 2, 0, Prompt())
    assert cache.observe(0, [1, 0, 1, 0], {0, 1}, {2}) == [Swap(1, 2)]
    # Layer 1's own 1 is in use; its 0 was never used, and 2 of layer 0 was.
    assert cache.observe(1, [0, 1, 1, 0], {0, 1}, {2}) == [Swap(0, 2)]
    # Layer 0's 0 and 2 were used in the first event, layer 1's 1 and 2 in the second.
    assert cache.observe(1, [0, 1, 1, 1], {1, 2}, {3}) == [Swap(0, 3, donor=0)]
    assert cache.observe(1, [1, 0, 0, 0], {1, 2, 3}, {0}) == [Swap(2, 0, donor=0)]
    assert cache.observe(1, [1, 1, 1, 1], {0, 1, 2, 3}) == []


def test_the_misses_used_last_are_copied():
    prompt = Prompt()
    cache = Placed(2, 4, 2, 0, prompt)
    assign = Assign(cache, prompt)
    view = ResidencyView({0, 1}, slots=2)
    assert assign.assign(0, [1, 0, 1, 1], view, BY_HAND) == LayerPlan((3,), (0, 2), (2,))
    cache.observe(0, [0, 0, 0, 1], {0, 1})
    assert assign.assign(0, [1, 0, 1, 1], view, BY_HAND) == LayerPlan((2,), (0, 3), (3,))
    assert assign.assign(0, [1, 0, 1, 1], ResidencyView({0, 1}), BY_HAND) == LayerPlan((2, 3), (0,), ())


def test_prompts_stream_whole_layers_and_leave_the_cache_alone():
    policies = systems.get("freetoken").create(2, 4, 1, 2)
    policies.begin(step(1, prefill=True))
    view = ResidencyView({0, 1}, slots=2)
    assert policies.assign.assign(0, [1, 0, 1, 1], view, BY_HAND) == LayerPlan((), (0, 2, 3), (2, 3))
    assert policies.cache.observe(0, [1, 0, 1, 1], {0, 1}, {2, 3}) == []
    assert policies.prefetch.foresee(0, [1, 0, 1, 1]) == [(1, [1, 1, 1, 1])]
    assert policies.prefetch.foresee(1, [1, 0, 1, 1]) == []
    policies.begin(step(1))
    assert policies.prefetch.foresee(0, [1, 0, 1, 1]) == []
