"""Reads on the disk lane, by hand: 10 s of bytes each, and 1 s until the first one."""

import pytest

from dali.hardware.cost import DiskCosts
from dali.hardware.disk_lane import Lane, layer_seconds, under_way

BYTES = 4096


def lane(depth):
    return Lane(DiskCosts(BYTES / 10, 1.0, depth))


def test_a_read_alone_takes_the_latency_and_its_bytes():
    costs = DiskCosts(BYTES / 10, 1.0, 1)
    (read,) = Lane(costs).begin([(0, 0)], 5.0, BYTES, False)
    assert (read.begun, read.first, read.landed) == (5.0, 6.0, 16.0)
    assert costs.read(BYTES) == 11.0


def test_a_checksum_takes_its_time_behind_the_bytes():
    costs = DiskCosts(BYTES / 10, 1.0, 2, check=2 / BYTES)
    assert costs.read(BYTES) == pytest.approx(13.0)
    reads = Lane(costs).begin([(0, 0), (0, 1)], 0.0, BYTES, False)
    assert [read.landed for read in reads] == pytest.approx([25.0, 25.0])


def test_reads_that_begin_together_land_together():
    disk = lane(4)
    reads = disk.begin([(0, 0), (0, 1), (0, 2)], 5.0, BYTES, False)
    assert [(read.first, read.landed) for read in reads] == [(6.0, 36.0)] * 3
    assert (disk.room(5.0), disk.room(36.0), disk.idle) == (1, 4, 36.0)


@pytest.mark.parametrize(("depth", "landings"), [(1, [11, 22, 33]), (2, [11, 21, 31]), (4, [11, 21, 31])])
def test_reads_under_way_at_once_hide_each_others_latency(depth, landings):
    disk = lane(depth)
    reads = [disk.begin([(0, expert)], disk.opens(ahead=False), BYTES, False)[0] for expert in range(3)]
    assert [read.landed for read in reads] == landings


def test_a_read_ahead_leaves_a_part_of_the_disk_to_others():
    disk = lane(4)
    disk.begin([(0, 0)], 0.0, BYTES, False)
    assert (disk.opens(ahead=True), disk.opens(ahead=False)) == (0.0, 0.0)
    for expert in (1, 2):
        assert disk.opens(ahead=True) == 0.0
        disk.begin([(0, expert)], 0.0, BYTES, False)
    assert (disk.opens(ahead=True), disk.opens(ahead=False)) == (11.0, 0.0)


def test_reads_land_in_the_order_they_began():
    disk = lane(2)
    assert disk.next() is None
    for expert in (3, 1):
        disk.begin([(0, expert)], 0.0, BYTES, False)
    assert [disk.take().expert, disk.take().expert] == [(0, 3), (0, 1)]
    assert disk.idle == 21.0


def test_reads_ahead_leave_others_of_the_disk_free():
    assert [under_way(depth) for depth in (1, 2, 4, 8)] == [1, 2, 3, 5]


@pytest.mark.parametrize(
    ("there", "missing", "seconds"),
    [
        (7.0, 0, 7.0),
        (7.0, 1, 15.0),  # it lands at 11, and takes 4
        (12.0, 1, 16.0),  # what is there is computed until 12
        (7.0, 2, 29.0),  # both land at 21
        (7.0, 3, 36.0),  # the third begins at 21, and lands at 32, while the two are computed
    ],
)
def test_a_layer_computes_what_has_landed_and_then_the_next(there, missing, seconds):
    assert layer_seconds(DiskCosts(BYTES / 10, 1.0, 2), BYTES, there, missing, 4.0) == seconds
