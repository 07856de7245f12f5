"""Reads from disk on a simulated device: the bytes come from the real store, the time from the profile's figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dali.devices import Buffer, SimDevice
from dali.hardware.cost import DiskCosts
from dali.hardware.disk_lane import Lane
from dali.telemetry import DiskCounters

DISK = "disk"


class ModelledReads:
    """One after another on a stream of their own, as a replay has them: whoever uses what they fill waits for them, and they for
    whoever used what lay there before."""

    def __init__(self, device: SimDevice, costs: DiskCosts) -> None:
        self._device = device
        self._stream = device.stream(DISK)
        self._lane = Lane(costs)
        self._reading = self._busy = 0.0

    def read(self, layer: int, into: Mapping[int, Buffer]) -> dict[int, float]:
        """Queue the reads of a layer's experts, whose bytes are there already, as many together as may be under way; when each is
        expected to end, on the device's clock."""
        now, waiting, ends = self._device.now(), list(into), dict[int, float]()
        while waiting:
            idle, begin = self._lane.idle, max(now, self._lane.opens(ahead=False))
            room = self._lane.room(begin)
            some, waiting = waiting[:room], waiting[room:]
            reads = self._lane.begin(
                [(layer, expert) for expert in some], begin, into[some[0]].nbytes, ahead=False
            )
            seconds = reads[0].landed - max(idle, now)
            self._busy += seconds
            together = tuple([into[expert] for expert in some])  # nobody has one before the last has landed
            for read in reads:
                expert = self._lane.take().expert[1]
                ends[expert] = read.landed
                self._reading += read.landed - begin
                label, share = f"read {layer}.{expert}", seconds / len(reads)
                self._device.launch(self._stream, lambda: None, (), together, share, label=label)
        return ends

    def modelled(self, counted: DiskCounters) -> DiskCounters:
        """What a pool has counted, with seconds of this clock."""
        stalled = self._device.clock.alone.get(DISK, 0.0)
        return replace(
            counted, stalled_seconds=stalled, reading_seconds=self._reading, busy_seconds=self._busy
        )
