"""What examinations go by: this machine as it is now."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from dali import compiled
from dali.doctor.machine import own_profile
from dali.doctor.plan import Device, Free
from dali.errors import DaliError, parameter
from dali.hardware.cost import reading
from dali.hardware.free_memory import available_ram
from dali.hardware.gpu import check_gpu
from dali.hardware.profile import DISK, Profile, load
from dali.hardware.quick import BASE, quick_profile
from dali.options import LoadOptions
from dali.store.cache import cache_root
from dali.store.folders import existing


@dataclass(frozen=True)
class Here:
    """This machine: its profile; what is free; whether compiled kernels serve; an accelerator to compare with, if there is one;
    and what was said of its profile."""

    profile: Profile
    free: Free
    compiled: bool
    cores: int
    other: Device | None = None
    said: tuple[str, ...] = ()

    @property
    def measured(self) -> bool:
        return self.profile.machine is not None


def look(options: LoadOptions) -> Here:
    """This machine, as loading would find it."""
    profile, said = own_profile()
    cores = options.threads or os.cpu_count() or 1
    free = Free(available_ram(), free_disk(cache_root()))
    if profile is None:
        said = said or [
            "This machine was never measured, so speeds are rough: `dali bench hw` sharpens them."
        ]
        return Here(quick_profile(cores), free, compiled.enabled(), cores, said=tuple(said))
    if not profile.has_disk:  # its measurement was dropped, or the cache has moved since
        published = load(BASE).figures
        profile = replace(profile, figures={**profile.figures, **{name: published[name] for name in DISK}})
    free = free._replace(reads=reading(profile))
    other = Device("the GPU", profile, False) if profile.has_accelerator and _has_gpu() else None
    return Here(profile, free, compiled.enabled(), cores, other)


def free_disk(folder: Path) -> int:
    """Bytes that are free where a folder is, or would be."""
    return shutil.disk_usage(existing(folder)).free


def device_of(options: LoadOptions, mine: Profile) -> Device | None:
    """The accelerator that `options` name. DaliError: it is not there, or nobody measured it."""
    if options.device == "cpu":
        return None
    if options.device_kind == "cuda":
        check_gpu(options.device)
    profile = options.planning_profile() or (mine if mine.has_accelerator else None)
    if profile is None:
        raise DaliError(
            f"Nobody measured {options.device} here, so nothing can be said of it.",
            f"Measure it: `dali bench hw`, or name a profile like it ({parameter('profile')}).",
        )
    return Device(options.device, profile, options.device_kind == "sim")


def _has_gpu() -> bool:
    try:
        check_gpu("cuda")
    except DaliError:
        return False
    return True
