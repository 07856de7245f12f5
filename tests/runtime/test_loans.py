"""What a step has of experts on disk: the order it takes them in, as many at a time as there are slots, each until it is done."""

from __future__ import annotations

import pytest

from dali.devices import COMPUTE, SimDevice
from dali.hardware.cost import DiskCosts, ExpertCosts
from dali.kernels import native
from dali.policies.plan import LayerPlan
from dali.runtime.loans import Loans, by_arrival
from dali.runtime.modelled_reads import ModelledReads
from dali.store.disk_pool import DiskPool
from dali.store.packed.builder import ensure_store
from tiny_stores import RandomExperts, expected_record, header, silent

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
DESCRIBED = header(layers=2, experts=8)
COSTS = ExpertCosts([0.0, 4.0, 8.0], [0.0, 1.0, 2.0], 3.0, 6.0, 0.5)
DISK = DiskCosts(DESCRIBED.record_bytes / 10, 1.0, 2)  # a read: 1 s until the first byte, 10 s of bytes
PLAN = LayerPlan((0, 1, 2), (7, 3, 4, 5), (3, 4, 5))


@pytest.fixture
def make(tmp_path):
    ensure_store(tmp_path / "store", DESCRIBED, RandomExperts(), silent)

    def build(slots: int) -> tuple[Loans, SimDevice, DiskPool]:
        pool, device = DiskPool(tmp_path / "store", slots, slots, depth=2), SimDevice(2**20)
        return Loans(device, pool, ModelledReads(device, DISK)), device, pool

    return build


def test_those_in_ram_come_first_and_then_those_with_the_most_to_do():
    workload = [1, 1, 2, 2, 1, 1, 0, 1]
    plan, order = by_arrival(PLAN, [0, 2, 3, 5], workload, COSTS)
    assert order == [2, 3, 5, 0]  # 8, 3 + 2 + 0.5, 3 + 1 + 0.5, and 4 seconds
    assert plan == LayerPlan((1, 2, 0), (7, 4, 3, 5), (4, 3, 5))
    assert by_arrival(PLAN, [], workload, COSTS) == (PLAN, [])


def test_missing_experts_are_taken_one_by_one_behind_those_that_are_there(make):
    loans, _, pool = make(8)
    loans.lease(0, [0, 3])
    missing = loans.note(0, [0, 1, 2, 3])
    assert missing == [1, 2]
    plan, order = by_arrival(LayerPlan((0, 1), (2, 3), (2, 3)), missing, [1] * 8, COSTS)
    assert order == [2, 1]
    assert list(loans.portions(0, plan, order)) == [([0], [3]), ([], [2]), ([1], [])]
    assert sum(pool.counters().misses) == 2


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_more_experts_than_slots_come_by_and_by(make, slots):
    loans, _, pool = make(slots)
    missing = loans.note(0, range(8))
    plan, order = by_arrival(LayerPlan((0, 1, 2), (3, 4, 5, 6, 7), (3, 4, 5, 6, 7)), missing, [1] * 8, COSTS)
    seen = []
    for on_cpu, copied in loans.portions(0, plan, order):
        for expert in (*on_cpu, *copied):
            assert pool.holds(0, expert)
            (record,) = loans.lease(0, [expert]).records
            assert record.tolist() == expected_record(0, expert, DESCRIBED.layout).tolist()
            seen.append(expert)
    assert sorted(seen) == list(range(8))
    assert pool.counters().reads == 8


def test_what_is_lent_stays_until_then_and_whoever_wants_its_slot_waits(make):
    loans, device, pool = make(2)
    for expert in (0, 1):
        lease = loans.lease(0, [expert])
        device.launch(device.stream(COMPUTE), lambda: None, [device.adopt(lease.records[0])], (), 100.0)
        loans.lend(lease, device.mark(device.stream(COMPUTE)))
        del lease
    assert pool.room(0, [2]) == -1
    assert device.now() == 0.0
    ready = loans.lease(0, [2]).ready
    assert device.now() == 111.0  # read by 11, then in use for 100
    assert (pool.holds(0, 0), pool.holds(0, 1)) == (False, True)
    assert ready == 122.0
    loans.forget()
    assert pool.room(0, []) == 2


def test_reads_hide_each_others_latency(make):
    loans, device, _ = make(4)
    assert loans.lease(1, [5, 6, 7]).ready == 32.0  # two of them together, and then the third
    assert loans.lease(1, [6]).ready == 21.0
    device.synchronize()
    assert device.now() == device.clock.alone["disk"] == 32.0
    assert loans.lease(1, [5]).ready == 21.0  # long ago
