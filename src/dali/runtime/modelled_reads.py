"""Reads from disk on a simulated device: the bytes come from the real store, the time from the profile's figures."""

from __future__ import annotations

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

    def read(self, layer: int, expert: int, into: Buffer) -> float:
        """Queue the read of an expert, whose bytes are there already; when it is expected to end, on the device's clock."""
        now, idle = self._device.now(), self._lane.idle
        begin = max(now, self._lane.opens(ahead=False))
        read = self._lane.begin((layer, expert), begin, into.nbytes, ahead=False)
        self._lane.take()
        seconds = read.landed - max(idle, now)
        self._reading += read.landed - begin
        self._busy += seconds
        self._device.launch(self._stream, lambda: None, (), (into,), seconds, label=f"read {layer}.{expert}")
        return read.landed

    def modelled(self, counted: DiskCounters) -> DiskCounters:
        """What a pool has counted, with seconds of this clock."""
        stalled = self._device.clock.alone.get(DISK, 0.0)
        return replace(
            counted, stalled_seconds=stalled, reading_seconds=self._reading, busy_seconds=self._busy
        )
