"""Experts on three tiers: in an accelerator's slots, in RAM, and in a store on disk."""

from __future__ import annotations

from dali.devices import Device, SimDevice
from dali.devices.cuda import GpuSlots
from dali.hardware.cost import disk_costs
from dali.hardware.profile import Profile
from dali.loading.loaded import LoadedModel
from dali.runtime.loans import Loans
from dali.runtime.modelled_reads import ModelledReads
from dali.store.disk_pool import DiskPool


def lend(loaded: LoadedModel, device: Device, profile: Profile) -> Loans:
    """What a device and the CPU beside it have of a model's experts. On a simulated device the times of reads are the profile's,
    which the telemetry then tells. UsageError: it has none."""
    pool = loaded.pool
    if not isinstance(pool, DiskPool):
        return Loans(device, pool)
    if not isinstance(device, SimDevice):
        return Loans(device, pool, native=isinstance(device, GpuSlots))
    reads = ModelledReads(device, disk_costs(profile))
    loaded.telemetry.follow_disk(lambda: reads.modelled(pool.counters()))
    return Loans(device, pool, reads)
