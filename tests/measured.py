"""A profile as `dali bench hw` leaves it, of made-up figures, and the machine it is of."""

from __future__ import annotations

from dataclasses import replace

from dali.hardware import profile as profiles
from dali.hardware.machine import Machine
from dali.hardware.profile import UNITS, Curve, Figure, Profile, Table

MACHINE = Machine("a made-up CPU", 8, 32 * 2**30, "nvme0n1 a disk", "", "avx2")
VALUES = {
    "memory_bandwidth": 50e9,
    "cpu_bandwidth": 40e9,
    "cpu_rate": 1e12,
    "disk_bandwidth": 3e9,
    "disk_latency": 1e-4,
    "disk_queue_depth": 2.0,
    "cpu_call": 2e-6,
    "layer_overhead": 2e-5,
    "step_overhead": 4e-4,
    "sequence_overhead": 5e-5,
    "attention_bandwidth": 30e9,
    "attention_score": 1e-9,
    "attention_rate": 2e11,
    "attention_query": 1e-10,
    "prompt_layer": 1e-3,
}
ACCELERATED = {
    "gpu_memory": 8 * 2**30,
    "gpu_bandwidth": 300e9,
    "gpu_rate": 2e13,
    "link_bandwidth": 2e10,
    "link_latency": 1e-5,
    "launch": 3e-6,
    "sync": 1e-5,
}
TABLES = tuple(
    Table("cpu", "w4", hidden, intermediate, 3, ((1, base), (8, 2 * base)), "measured", "made up", bytes=size)
    for hidden, intermediate, base, size in ((2048, 768, 6e-5, 2654208), (2880, 2880, 3e-4, 13996800))
)


def measured(machine: Machine = MACHINE, **values: float) -> Profile:
    """One of `machine`, with these figures beside VALUES."""
    figures = {
        name: Figure(value, UNITS[name], "measured", "made up", spread=0.01, readings=3)
        for name, value in {**VALUES, **values}.items()
    }
    curve = Curve("memory, huge pages", "threads", "B/s", ((1.0, 20e9), (8.0, 50e9)), "made up")
    return Profile(
        profiles.OWN, "a made-up machine", figures, TABLES, (curve,), machine, "2026-11-30", "0.1", (), 0.05
    )


def without_machine(profile: Profile) -> Profile:
    return replace(profile, machine=None)
