"""Experts in RAM as slots allow, and all on disk: what is leased is what was stored, whatever the disk does meanwhile."""

from __future__ import annotations

import gc
import random
import signal
import sys
import threading
import time
import weakref
from types import SimpleNamespace

import pytest
import torch

from dali.compiled import library
from dali.errors import StoreError
from dali.kernels import native
from dali.policies.places import Places
from dali.policies.pool.fading import Policy
from dali.policies.trial import FIRST, PAIRS
from dali.store import disk_pool
from dali.store.direct_io import PAGE
from dali.store.disk_pool import DiskPool
from dali.store.packed.builder import ensure_store
from dali.store.packed.reader import DamagedStore, StoreReader
from page_cache import cached, forget, resident
from tiny_stores import RandomExperts, expected_record, header, silent

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
LAYERS, EXPERTS = 3, 5
DESCRIBED = header(layers=LAYERS, experts=EXPERTS)


@pytest.fixture
def path(tmp_path):
    ensure_store(tmp_path / "store", DESCRIBED, RandomExperts(), silent)
    return tmp_path / "store"


def expected(layer: int, expert: int) -> torch.Tensor:
    return expected_record(layer, expert, DESCRIBED.layout)


def assert_leased(pool: DiskPool, layer: int, ids: list[int]) -> None:
    lease = pool.lease(layer, ids)
    assert lease.layout == DESCRIBED.layout
    assert len(lease.records) == len(ids)
    for expert, record in zip(ids, lease.records, strict=True):
        assert torch.equal(record, expected(layer, expert))


def damage(path, layer: int, expert: int) -> None:
    with path.open("r+b") as file:
        file.seek(DESCRIBED.record_offset(layer * EXPERTS + expert) + 100)
        file.write(b"\xa5\x5a\xa5")


def test_it_knows_its_sizes(path):
    pool = DiskPool(path, 4, 6, depth=2)
    assert (pool.layers, pool.experts, pool.slots, pool.most_slots, pool.at_once) == (3, 5, 4, 6, 4)
    assert pool.nbytes == 4 * DESCRIBED.record_bytes
    assert pool.stored_bytes == 15 * DESCRIBED.record_bytes
    pool.grow(6)
    assert (pool.slots, pool.at_once) == (6, 5)


@pytest.mark.parametrize("slots", [1, 2, 5, 15])
def test_what_is_leased_is_what_was_stored(path, slots):
    pool, chance = DiskPool(path, slots, slots, depth=2), random.Random(0)
    for _ in range(60):
        ids = chance.sample(range(EXPERTS), chance.randint(1, pool.at_once))
        assert_leased(pool, chance.randrange(LAYERS), ids)
    counters = pool.counters()
    assert counters.read_bytes == counters.reads * DESCRIBED.record_bytes
    # What others want nearly all of is read ahead, too.
    assert counters.wanted_bytes == (sum(counters.misses) + counters.ahead_used) * DESCRIBED.record_bytes
    assert counters.reads >= sum(counters.misses) + counters.ahead_used
    if slots == 15:
        assert counters.reads == 15


def test_what_is_leased_is_never_given_up(path):
    pool = DiskPool(path, 3, 3, depth=2)
    kept = pool.lease(0, [1, 4])
    for expert in range(EXPERTS):
        assert_leased(pool, 2, [expert])
    assert torch.equal(kept.records[0], expected(0, 1))
    assert torch.equal(kept.records[1], expected(0, 4))
    del kept
    gc.collect()
    assert_leased(pool, 1, [0, 1, 2])


def test_more_than_there_is_room_for_is_refused_and_harms_nothing(path):
    pool = DiskPool(path, 3, 3, depth=2)
    with pytest.raises(StoreError, match="all memory for experts is in use"):
        pool.lease(0, [0, 1, 2, 3])
    assert_leased(pool, 0, [2, 3, 4])


def test_the_least_used_leave_first(path):
    pool = DiskPool(path, 3, 3, depth=1)
    for _ in range(5):
        assert_leased(pool, 0, [0, 1])
    for expert in (2, 3, 4):  # one after another in the slot that is left
        assert_leased(pool, 0, [expert])
    before = pool.counters().reads
    assert_leased(pool, 0, [0, 1])
    assert pool.counters().reads == before == 5


def test_what_is_read_ahead_is_there_when_it_is_asked_for(path):
    pool = DiskPool(path, 15, 15, depth=8)
    # A step that wants a whole layer has those that follow read ahead, too, as far as keeps the disk busy: 16 reads at a time.
    assert_leased(pool, 0, list(range(EXPERTS)))
    assert_leased(pool, 1, [2, 4])
    counters = pool.counters()
    assert counters.ahead_used + counters.ahead_late == 2
    assert counters.ahead_wasted == 3
    assert counters.reads == 3 * EXPERTS
    assert_leased(pool, 1, [0, 2, 3])


def test_reads_ahead_last_as_long_as_there_is_no_step(path):
    pool = DiskPool(path, 15, 15, depth=1)
    for layer in 0, 1:
        assert_leased(pool, layer, list(range(EXPERTS)))
        if layer == 0:
            time.sleep(0.1)  # attention: a hundred reads
    assert pool.counters().reads == 3 * EXPERTS


def test_a_disk_faster_than_computing_reads_no_farther_ahead(path):
    pool = DiskPool(path, 15, 15, depth=1)
    lease = library.ExpertLease(pool._cache._cache, 0, list(range(EXPERTS)))
    while lease.next():
        time.sleep(0.01)  # computing: ten reads
    assert EXPERTS < pool.counters().reads <= 2 * EXPERTS  # the next layer's, and none of the one after it


def test_of_a_whole_layer_a_few_are_told_at_a_time(path):
    pool = DiskPool(path, 15, 15, depth=4)
    everything = list(range(EXPERTS))
    assert_leased(pool, 0, everything)
    lease = library.ExpertLease(pool._cache._cache, 0, everything)
    assert [sorted(lease.next()) for _ in range(4)] == [[0, 1], [2, 3], [4], []]
    few = library.ExpertLease(
        pool._cache._cache, 0, [0, 2, 3]
    )  # a step that decodes computes them in one call
    assert [sorted(few.next()) for _ in range(2)] == [[0, 1, 2], []]


def test_a_disk_that_nobody_waits_for_is_not_busy_until_somebody_looks(path):
    pool = DiskPool(path, 15, 15, depth=2)
    for expert in (0, 1, 2, 3, 4, 5, 6, 7, 8):  # which tell how long reads take
        assert_leased(pool, expert // EXPERTS, [expert % EXPERTS])
    before = pool.counters()
    lease = library.ExpertLease(pool._cache._cache, 2, [0])
    time.sleep(0.1)  # of computing what is there
    lease.hold(1)
    now = pool.counters()
    assert now.reads == before.reads + 1
    assert 0 < now.busy_seconds - before.busy_seconds < 0.1
    assert 0 < now.reading_seconds - before.reading_seconds < 0.1


def test_several_threads_lease_at_once(path):
    pool, failures = (
        DiskPool(path, 11, 11, depth=1),
        [],
    )  # room for both; what one waits to ask for the other may have begun

    def work(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(150):
                assert_leased(
                    pool, chance.randrange(LAYERS), chance.sample(range(EXPERTS), chance.randint(1, 5))
                )
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_damaged_record_is_never_given(path):
    pool = DiskPool(path, 3, 3, depth=2)
    damage(path, 1, 2)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"expert 2 of MoE layer 1: it fails its checksum\.\nTry again"):
            pool.lease(1, [0, 2, 4])
    assert_leased(pool, 1, [0, 4, 3])  # all else is as it was


def test_a_store_that_is_written_to_is_not_taken_for_what_it_was(path):
    pool = DiskPool(path, 1, 1, depth=1)
    assert_leased(pool, 0, [0])
    assert_leased(pool, 0, [1])
    damage(path, 0, 0)
    with pytest.raises(StoreError, match="fails its checksum"):
        pool.lease(0, [0])


def test_a_store_that_is_cut_off_says_so(path):
    pool = DiskPool(path, 3, 3, depth=2)
    with path.open("r+b") as file:
        file.truncate(DESCRIBED.record_offset(7) + 1000)
    assert_leased(pool, 0, [4])
    with pytest.raises(StoreError, match="expert 2 of MoE layer 1: it ends too early"):
        pool.lease(1, [2])
    with pytest.raises(StoreError, match="expert 0 of MoE layer 2: it ends too early"):
        pool.lease(2, [0])


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
def test_a_store_whose_name_is_gone_serves_on(path, replaced):
    pool = DiskPool(path, 2, 2, depth=2)
    if replaced:
        other = path.with_name("other")
        other.write_bytes(b"\0" * 100_000)
        other.replace(path)
    else:
        path.unlink()
    for layer in range(LAYERS):
        assert_leased(pool, layer, [0, 4])


def test_what_is_no_store_is_refused(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DamagedStore, match="bytes instead of"):
        DiskPool(path, 2, 2, depth=2)
    path.unlink()
    with pytest.raises(DamagedStore, match="No such file"):
        DiskPool(path, 2, 2, depth=2)


@pytest.fixture(params=native.variants() if native.AVAILABLE else [])
def variant(request):
    before = native.variant()
    native.use(request.param)
    yield request.param
    native.use(before)


def test_checksums_are_those_of_the_store(path, variant):
    with StoreReader(path) as reader:
        sums = reader.checksums
    for index, expected_sum in enumerate(sums):
        record = expected(*divmod(index, EXPERTS))
        assert library.xxh3(record.data_ptr(), record.nbytes) == expected_sum


def test_it_gives_up_what_the_policy_says(path):
    """As the replay's pool does: `places`, with the policy that is ours."""
    size = float(DESCRIBED.record_bytes)
    pool, places = DiskPool(path, 6, 6, depth=2), Places(Policy(LAYERS, EXPERTS, 6, [size] * LAYERS))
    chance = random.Random(3)
    for _ in range(300):
        layer = chance.randrange(LAYERS)
        ids = sorted(set(chance.choices(range(EXPERTS), [8, 4, 2, 1, 1], k=chance.randint(1, 3))))
        places.observe(layer, [int(expert in ids) for expert in range(EXPERTS)])
        absent = [expert for expert in ids if expert not in places.held(layer)]
        for expert in absent:
            places.take((layer, expert), [(layer, other) for other in ids])
        before = pool.counters()
        assert_leased(pool, layer, ids)
        assert sum(pool.counters().misses) - sum(before.misses) == len(absent)


@pytest.fixture
def provided(monkeypatch):
    """Stretches of memory that the system was asked for, by their addresses; to be changed: what happens at each."""
    asked = SimpleNamespace(addresses=[], then=lambda: None)

    def populate(memory):
        asked.addresses.append(memory.data_ptr())
        asked.then()

    monkeypatch.setattr(disk_pool, "populate", populate)
    return asked


def test_memory_of_all_slots_is_provided_in_the_order_in_which_they_are_taken(path, provided):
    pool = DiskPool(path, 2, 6, depth=1)
    pool.grow(6)
    pool.prepare_memory(lambda: False).join()
    memory = pool.memory.data_ptr()
    assert provided.addresses == [memory + slot * pool.slot_bytes for slot in range(6)]
    fresh = DiskPool(path, 6, 6, depth=1)
    first = fresh.lease(0, [3]).records[0]
    assert first.data_ptr() == fresh.memory.data_ptr()


def test_no_more_is_provided_once_it_shall_end(path, provided):
    pool = DiskPool(path, 6, 6, depth=1)
    pool.prepare_memory(lambda: len(provided.addresses) == 3).join()
    assert len(provided.addresses) == 3


def test_nor_once_the_pool_has_gone(path, provided):
    pool, gone = DiskPool(path, 6, 6, depth=1), threading.Event()
    provided.then = gone.wait
    thread = pool.prepare_memory(lambda: False)
    del pool
    gone.set()
    thread.join()
    assert len(provided.addresses) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="nobody tells here what memory is there")
def test_what_is_provided_is_there_and_as_it_was(path):
    pool = DiskPool(path, 4, 15, depth=1)
    kept = pool.lease(2, [3])
    pool.grow(15)
    pool.prepare_memory(lambda: False).join()
    assert torch.equal(kept.records[0], expected(2, 3))
    there = resident(pool.memory.data_ptr(), pool.nbytes)
    if sum(there) <= 4 * pool.slot_bytes // PAGE:
        pytest.skip("this kernel provides no memory ahead")
    assert all(there)


def test_what_another_has_begun_to_read_is_not_read_again(path):
    pool = DiskPool(path, 8, 8, depth=1)
    cache = pool._cache._cache
    everything = library.ExpertLease(cache, 0, list(range(EXPERTS)))  # the last ones wait for their turn
    last = library.ExpertLease(cache, 0, [4])
    assert everything.hold(EXPERTS)[4] == last.hold(1)[0]
    assert pool.counters().wanted_bytes == EXPERTS * DESCRIBED.record_bytes
    assert_leased(pool, 0, [3, 4, 0])


def test_memory_stays_until_nothing_is_read_into_it(path):
    for _ in range(20):
        pool = DiskPool(path, 15, 15, depth=4)
        arena, cache = weakref.ref(pool._arena._map), pool._cache._cache
        pool.lease(0, range(EXPERTS))  # and the next layer is being read
        del pool
        gc.collect()
        assert arena() is not None
        del cache
        gc.collect()
        assert arena() is None


def test_a_step_may_tell_of_its_experts_once_and_lease_them_bit_by_bit(path):
    pool, told = DiskPool(path, 4, 4, depth=2), DiskPool(path, 4, 4, depth=2)
    for ids in ([0, 1], [1, 2], [0, 4, 3]):
        assert_leased(pool, 0, ids)
        missing = told.note(0, ids)
        assert missing == [expert for expert in sorted(ids) if not told.holds(0, expert)]
        for expert in ids:
            assert told.lease(0, [expert], noted=True).records[0].equal(expected(0, expert))
    assert told.counters().hits == pool.counters().hits
    assert told.counters().misses == pool.counters().misses
    assert [told.holds(0, expert) for expert in range(EXPERTS)] == [
        pool.holds(0, expert) for expert in range(EXPERTS)
    ]


def test_it_tells_how_many_more_can_be_leased(path):
    pool = DiskPool(path, 3, 3, depth=2)
    kept = pool.lease(0, [1, 2])
    assert pool.room(0, [1, 2]) == 1
    assert pool.room(0, [3, 4]) == -1
    del kept
    assert pool.room(0, [0, 3, 4]) == 0


@pytest.fixture
def while_it_waits():
    """Have the main thread do something once, as soon as something has begun in which it waits for the disk."""
    before = signal.getsignal(signal.SIGALRM)

    def arrange(begun, act):
        def look(*_):
            if begun():
                signal.setitimer(signal.ITIMER_REAL, 0)
                act()

        signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)

    yield arrange
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_step_computes_what_another_has_read_while_it_waited_for_a_slot(path, while_it_waits):
    pool = DiskPool(path, 1, 1, depth=1)
    leases = [pool.lease(0, [0])]  # the only slot
    misses = sum(pool.counters().misses)

    def read_by_another():
        leases.clear()
        leases.append(pool.lease(0, [2]))

    while_it_waits(lambda: sum(pool.counters().misses) > misses, read_by_another)
    hidden, ids = torch.ones(1, DESCRIBED.layout.shape.hidden), torch.tensor([[2]])
    out, active = pool.lease(0).native.compute(hidden, ids, torch.ones(1, 1))
    assert active == 1
    alone = native.ExpertRecords(DESCRIBED.layout, [expected(0, expert) for expert in range(EXPERTS)])
    assert torch.equal(out, alone.compute(hidden, ids, torch.ones(1, 1))[0])


@pytest.mark.skipif(sys.platform != "linux", reason="nobody tells here what the page cache has")
def test_through_the_page_cache_the_same_is_leased_and_nothing_stays_there(path):
    pool = DiskPool(path, 4, 4, depth=2, plain=True)
    assert not pool.direct
    forget(path)
    for layer in range(LAYERS):
        assert_leased(pool, layer, [1, 3, 0])
    assert not cached(path, DESCRIBED.file_bytes)


def test_steps_that_decode_may_read_another_way_than_prompts(path):
    pool = DiskPool(path, 2, 2, depth=2, plain=True)
    if not pool.has_both_ways:
        pytest.skip("the file system has one way")
    assert not DiskPool(path, 2, 2, depth=2).has_both_ways  # as the budget has no room for it
    for direct, in_steps, few, many in [(False, True, 0, 3), (True, False, 1, 0), (True, True, 0, 0)]:
        pool.read_past(direct, in_steps, held=False)
        assert pool.direct == direct
        assert pool.cached_bytes == 2 * pool.slot_bytes
        for experts, plain in (([0, 1], 2 * few), ([0, 2, 3, 4], many)):
            pool.note(0, experts)
            before = pool.counters().plain_reads
            for ids in (experts[:2], [4]) if len(experts) > 2 else (experts,):
                pool.lease(1, ids, noted=True)
            assert pool.counters().plain_reads - before == plain
            pool.lease(2, [0, 1], noted=True)  # whose slots are wanted next


def test_of_two_comparisons_one_waits_for_the_other(path):
    for held in (False, True):
        pool, told = DiskPool(path, 2, 2, depth=2, plain=True), []
        if not pool.has_both_ways:
            pytest.skip("the file system has one way")
        pool.read_past(True, True, held)
        for _ in range(FIRST + 2 * PAIRS):
            for layer in range(LAYERS):
                pool.note(layer, [0, 1])
            told.append(pool.decoded())
        assert [one is None for one in told] == [False] * (FIRST - 1) + [not held] * 2 * PAIRS + [False]
        assert told[0][2] == 2 * LAYERS  # wanted, as none was ever read
