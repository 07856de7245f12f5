"""What tells one machine from another, so that a profile is used where it was measured and nowhere else. Needs no torch."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

from dali import compiled
from dali.store.folders import existing

PROCESSORS = Path("/proc/cpuinfo")
GPUS = Path("/proc/driver/nvidia/gpus")
DEVICES = Path("/sys/dev/block")
MOUNTS = Path("/proc/self/mountinfo")
MEMORY_SHARE = 0.05  # by which its size may differ: what the system keeps for itself changes with its version


@dataclass(frozen=True, slots=True)
class Machine:
    """`memory` in bytes; `disk`: where dali's cache lies; `gpu`: NVIDIA's, "" without; `kernels`: the instruction set that dali
    computes with, "torch" without compiled kernels."""

    cpu: str
    cores: int
    memory: int
    disk: str
    gpu: str
    kernels: str

    @classmethod
    def of(cls, data: object) -> Machine | None:
        """As JSON has it. TypeError, ValueError: it has it otherwise."""
        if data is None:
            return None
        if not isinstance(data, dict):
            raise TypeError(f"a machine is no {data!r:.40}")
        machine = cls(**data)
        for field in fields(cls):
            kind = int if field.name in ("cores", "memory") else str
            if type(getattr(machine, field.name)) is not kind:
                raise ValueError(f"the machine's {field.name} is {getattr(machine, field.name)!r:.40}")
        return machine


def this_machine(folder: Path) -> Machine:
    """`folder`: of dali's cache; it need not be there yet."""
    return Machine(
        _cpu(),
        os.cpu_count() or 1,
        int(psutil.virtual_memory().total),
        disk_of(folder),
        _gpu(),
        compiled.variant() if compiled.enabled() else "torch",
    )


def differences(measured: Machine, here: Machine) -> list[str]:
    """What makes `here` another machine than the one measured, in words. Disk and GPU, which are changed alone, do not."""
    found = []
    if (measured.cpu, measured.cores) != (here.cpu, here.cores):
        found.append(f"{measured.cores} cores of {measured.cpu}, not {here.cores} of {here.cpu}")
    if abs(measured.memory - here.memory) > MEMORY_SHARE * max(measured.memory, here.memory):
        found.append(f"{measured.memory / 2**30:.0f} GiB of memory, not {here.memory / 2**30:.0f}")
    if measured.kernels != here.kernels:
        found.append(f"kernels {measured.kernels}, not {here.kernels}")
    return found


def disk_of(folder: Path) -> str:
    """The device that holds a folder: its name and model, as far as the system says; else its file system."""
    with suppress(OSError):
        number = existing(folder).stat().st_dev
        known = f"{os.major(number)}:{os.minor(number)}"
        with suppress(OSError):
            device = (DEVICES / known).resolve(strict=True)
            whole = device.parent if (device / "partition").exists() else device
            model = ""
            with suppress(OSError):
                model = (whole / "device" / "model").read_text().strip()
            return f"{whole.name} {model}".strip()
        for line in MOUNTS.read_text().splitlines():  # file systems of several devices have none of their own
            fields, _, rest = line.partition(" - ")
            if fields.split()[2:3] == [known]:
                return " ".join(rest.split()[:2])
    return "unknown"


def _cpu() -> str:
    with suppress(OSError):
        for line in PROCESSORS.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _gpu() -> str:
    """The first of NVIDIA's, as its driver says in files."""
    with suppress(OSError):
        for folder in sorted(GPUS.iterdir()):
            for line in (folder / "information").read_text().splitlines():
                name, _, value = line.partition(":")
                if name.strip() == "Model":
                    return value.strip()
    return ""
