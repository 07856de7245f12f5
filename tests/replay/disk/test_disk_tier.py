"""The pool and its reads: stories with every event by hand, then what holds for any trace."""

import numpy as np
import pytest

from dali.hardware import profile
from dali.hardware.cost import DiskCosts, ExpertCosts, disk_costs
from dali.policies import create
from dali.policies.plan import LayerPlan, ResidencyView
from dali.policies.read_ahead import ReadAhead
from dali.replay.disk import columns, pools
from dali.replay.disk.tier import Tier
from dali.replay.shapes import SHAPES
from dali.replay.steps import forwards
from dali.replay.timeline import FORESEEING, SCRATCH, Timeline, dense_seconds
from dali.systems import get
from replay.tiny_traces import random_trace

BYTES = 4096
DISK = DiskCosts(BYTES / 10, 1.0, 2)  # a read: 1 s until the first byte, 10 s of bytes
COSTS = ExpertCosts([0.0, 4.0, 8.0], [0.0, 1.0, 2.0], 3.0, 6.0, 0.5)
NOTHING = ResidencyView(frozenset())


def trusted():
    """Whose guesses were right so far."""
    one = ReadAhead()
    for _ in range(10):
        one.choose(0, [1, 2], 0.0, 1.0)
        one.settle(0, [1, 2])
    return one


class Story:
    """A pool of two layers with four experts, under `lru`."""

    def __init__(self, places, ahead=False):
        self.log = []
        policy = create("pool", "lru", layers=2, experts=4, slots=places, read_seconds=[11.0] * 2)
        self.tier = Tier(policy, DISK, BYTES, trusted() if ahead else None, self.log)

    def serve(self, layer, experts, now, fetch=()):
        workload = [int(expert in (*experts, *fetch)) for expert in range(4)]
        plan = LayerPlan(tuple(experts), tuple(fetch), tuple(fetch))
        view = NOTHING if not fetch else ResidencyView(frozenset(), {}, 4)
        return self.tier.serve(layer, workload, plan, view, COSTS, 0.0, now)

    def expect(self, layer, experts, now, seconds, dense):
        self.tier.read_ahead(layer, [experts], set(), seconds, dense, now)

    @property
    def events(self):
        return [(read.expert[1], read.begun, read.first, read.landed, gone) for read, gone in self.log]


def test_experts_compute_while_others_are_read():
    story = Story(places=4)
    lanes = story.serve(0, [0, 1, 2], now=100.0)
    assert story.events == [
        (0, 100, 101, 121, None),
        (1, 100, 101, 121, None),
        (2, 121, 122, 132, None),
    ]
    assert lanes.end == 36.0  # 1 + 10 + 10 and 1 + 10 of reading, and the last one's 4
    assert not story.serve(1, [], now=136.0).waited
    assert story.serve(0, [2, 0], now=200.0).end == 8.0
    assert (story.tier.counts.hits, story.tier.counts.missed, story.tier.counts.reads) == (2, 3, 3)


def test_two_places_are_enough_to_read_one_while_another_computes():
    story = Story(places=2)
    assert story.serve(0, [0, 1, 2], now=100.0).end == 40.0
    assert story.events == [
        (0, 100, 101, 121, None),
        (1, 100, 101, 121, None),
        (2, 125, 126, 136, (0, 0)),  # not before expert 0 is computed: 121 to 125
    ]


def test_those_in_ram_compute_first_and_stay_until_they_have():
    story = Story(places=2)
    story.serve(0, [0], now=0.0)
    story.serve(1, [3], now=20.0)
    lanes = story.serve(0, [1, 0], now=40.0)
    assert lanes.end == 15.0
    assert story.events[2:] == [(1, 40, 41, 51, (1, 3))]


def test_an_expert_in_use_gives_its_place_up_once_it_is_computed():
    story = Story(places=2)
    story.serve(0, [0], now=0.0)
    story.serve(1, [3], now=20.0)
    assert story.serve(0, [0, 1, 2], now=40.0).end == 25.0
    assert story.events[2:] == [(1, 40, 41, 51, (1, 3)), (2, 44, 51, 61, (0, 0))]  # 0 computes until 44


def test_a_fetched_expert_is_read_first_and_then_copied():
    story = Story(places=4)
    lanes = story.serve(0, [0], fetch=[1], now=0.0)
    # 0 has 4 s of the CPU left to do once it is there; 1 a copy of 3, a launch of 0.5 and 1 of computing. Both land at 21.
    assert [event[0] for event in story.events] == [1, 0]
    assert (lanes.link_end, lanes.gpu, lanes.cpu) == (24.0, 25.5, 25.0)


def test_a_foreseen_expert_is_read_while_its_layer_is_not_there_yet():
    story = Story(places=4, ahead=True)
    seconds = story.serve(0, [0], now=0.0).end
    story.expect(1, [1], now=0.0, seconds=seconds, dense=20.0)
    lanes = story.serve(1, [1], now=seconds + 20.0)
    assert story.events == [(0, 0, 1, 11, None), (1, 0, 11, 21, None)]
    assert not lanes.waited
    assert (story.tier.counts.ahead, story.tier.counts.late, story.tier.counts.missed) == (1, 0, 1)


def test_a_layer_that_comes_too_soon_waits_for_the_rest_of_the_read():
    story = Story(places=4, ahead=True)
    story.serve(0, [0], now=0.0)
    story.expect(1, [1], now=0.0, seconds=15.0, dense=2.0)
    lanes = story.serve(1, [1, 2], now=17.0)
    # 1 lands at 21 and computes to 25; 2 was begun at 17 and lands at 31.
    assert lanes.end == 35.0 - 17.0
    assert [read.ahead for read, _ in story.log] == [False, True, False]
    assert (story.tier.counts.late, story.tier.counts.missed) == (1, 2)


def test_a_demanded_read_goes_before_those_ahead_that_have_not_begun():
    story = Story(places=4, ahead=True)
    story.serve(0, [0], now=0.0)
    story.expect(1, [0, 1, 2], now=0.0, seconds=15.0, dense=20.0)  # time for two of the three
    story.serve(1, [3, 1], now=12.0)
    assert [(read.expert[1], read.ahead) for read, _ in story.log[1:]] == [(0, True), (1, True), (3, False)]
    assert story.tier.counts.late == 1


def test_nobody_foreseen_makes_room_for_a_read_ahead():
    story = Story(places=2, ahead=True)
    story.serve(1, [0], now=0.0)
    story.serve(0, [1], now=20.0)
    story.expect(1, [0, 3], now=20.0, seconds=15.0, dense=50.0)
    story.tier.advance(80.0)
    assert len(story.log) == 2  # (1, 0) is foreseen, and (0, 1) is its layer's own
    assert story.serve(1, [0], now=85.0).waited is False


def replayed(trace, name, places, slots=0, disk=None, batch=1):
    """(result, tier, log, what else the bounds need) of a replay with the sizes of Qwen3-30B-A3B."""
    shape, machine = SHAPES["qwen3-30b-a3b"], profile.load("laptop-8gb")
    disk = disk or disk_costs(machine)
    system = get("default" if slots else "all-cpu")
    policies = system.create(trace.layers, trace.experts, trace.top_k, slots, 0)
    model = shape.costs(machine, 512, accelerator=slots > 0)
    tier = pools.make(name, trace, places, disk, shape.expert_bytes)
    tier._log = log = []
    steps = forwards(trace, batch)
    result = Timeline(trace, policies, shape, model, slots, system.guarded, tier).run(steps)
    return result, tier, log, (shape, model, disk, steps)


@pytest.mark.parametrize("name", pools.names())
@pytest.mark.parametrize("places", [2, 7, 14])
@pytest.mark.parametrize("slots", [0, 2])
def test_what_holds_for_any_pool(name, places, slots):
    ids = random_trace(prompt=4, answer=12, seed=places).ids
    later = np.concatenate([ids[:, 1:], ids[:, :1]], axis=1)
    trace = random_trace(prompt=4, answer=12, seed=places, predicted={(FORESEEING, 1): later})
    result, tier, log, (shape, model, disk, steps) = replayed(trace, name, places, slots)
    counts, read_bytes = tier.counts, pools.aligned(shape.expert_bytes)
    everywhere = places + (slots * trace.layers + SCRATCH if slots else 0)

    row = columns.found(result, counts, shape.expert_bytes, read_bytes)
    assert row["hit_rate"] <= columns.belady(trace, steps, everywhere, cold=not slots) + 1e-12
    assert row["bytes_read"] == len(log) * read_bytes
    assert counts.reads == len(log) >= counts.useful  # each read was asked for, or in vain
    if name != "default":
        assert counts.reads == counts.missed

    least = columns.least_read_seconds(trace, steps, everywhere, read_bytes, disk, cold=not slots)
    assert result.seconds >= least * (1 - 1e-9)
    waited_for = (
        max(counts.reads - disk.depth, 0) * read_bytes / disk.bandwidth
    )  # the last ones may be on their way
    assert result.seconds + result.prefill_seconds >= waited_for * (1 - 1e-9)
    if not slots:
        dense = dense_seconds(shape, model)
        assert result.seconds >= columns.cpu_seconds(trace, steps, model, dense) * (1 - 1e-9)
    assert 0 <= counts.stalled <= result.seconds
    no_place_twice(log, places, disk.depth)


def no_place_twice(log, places, depth):
    """No expert is read while it holds a place, no more hold one than there are, and the disk is never asked for too much."""
    held, landings, before = {}, [], 0.0
    for read, gone in log:
        if gone is not None:
            assert held.pop(gone) <= read.begun  # nobody goes before its own read has landed
        assert read.expert not in held
        held[read.expert] = read.landed
        assert len(held) <= places
        assert read.begun >= before
        assert sum(landed > read.begun for landed in landings) < depth
        assert (
            not landings or read.first >= landings[-1] or (read.begun, read.landed) == (before, landings[-1])
        )
        landings.append(read.landed)
        before = read.begun


def test_with_room_for_all_every_expert_is_read_once():
    trace = random_trace(answer=30)
    _, tier, log, _ = replayed(trace, "fading", 24)
    assert len({read.expert for read, _ in log}) == len(log) == tier.counts.missed
    everything = {(layer, int(e)) for layer in range(3) for e in np.unique(trace.ids[:, layer])}
    assert {read.expert for read, _ in log} == everything


def test_a_prompts_chunk_reads_each_expert_once():
    trace = random_trace(sequences=1, prompt=300, answer=1)
    _, _, log, (_, _, _, steps) = replayed(trace, "lru", 2)
    first = sum(len(np.unique(trace.ids[steps[0].rows, layer])) for layer in range(3))
    assert [read.expert[0] for read, _ in log[:first]] == sorted(read.expert[0] for read, _ in log[:first])
    assert len({read.expert for read, _ in log[:first]}) == first


def test_a_disk_without_end_costs_nothing():
    trace = random_trace(answer=20)
    result, tier, _, (shape, model, _, steps) = replayed(trace, "lru", 4, disk=DiskCosts(1e18, 1e-15, 4))
    policies = get("all-cpu").create(trace.layers, trace.experts, trace.top_k, 0, 0)
    without = Timeline(trace, policies, shape, model, 0, False).run(steps)
    assert result.seconds == pytest.approx(without.seconds)
    assert tier.counts.stalled == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("right", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("bandwidth", [1e9, 6e9, 30e9])
@pytest.mark.parametrize("places", [6, 15])
def test_reading_ahead_never_costs_much(right, bandwidth, places):
    """Whatever the predictions are worth."""
    ids = random_trace(answer=40, seed=3).ids
    later = np.concatenate([ids[:, 1:], ids[:, :1]], axis=1)
    generator = np.random.default_rng(1)
    wrong = np.argsort(generator.random((*ids.shape[:2], 8)), axis=2)[..., :2]
    predicted = np.where(generator.random((*ids.shape[:2], 1)) < right, later, wrong).astype(np.uint8)
    disk = DiskCosts(bandwidth, 5e-5, 4)
    trace = random_trace(answer=40, seed=3, predicted={(FORESEEING, 1): predicted})
    with_it, tier, _, _ = replayed(trace, "default", places, disk=disk)
    without, _, _, _ = replayed(trace, "fading", places, disk=disk)
    assert without.seconds / with_it.seconds >= 0.98
    if right == 1.0 and bandwidth > 1e9 and places == 6:  # with more, so few steps want enough to tell
        assert with_it.seconds < without.seconds
        assert tier.counts.ahead > 0


def test_a_read_that_is_under_way_gives_its_place_to_nobody():
    story = Story(places=2, ahead=True)
    story.serve(1, [0], now=0.0)
    story.serve(0, [1], now=20.0)
    story.expect(1, [2], now=20.0, seconds=15.0, dense=9.0)
    lanes = story.serve(1, [0, 3], now=32.0)  # (1, 2) took the place of (1, 0), and lands at 41
    assert story.events[2:] == [(2, 20, 31, 41, (1, 0)), (0, 32, 41, 51, (0, 1)), (3, 41, 51, 61, (1, 2))]
    assert lanes.end == 33.0
