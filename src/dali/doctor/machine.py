"""This machine: what dali finds of it, what is wrong, and the command that mends it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import NamedTuple

import psutil

from dali import __version__, compiled
from dali.errors import DaliError
from dali.hardware import own
from dali.hardware.free_memory import available_ram
from dali.hardware.gpu import check_gpu
from dali.hardware.machine import this_machine
from dali.hardware.profile import Profile
from dali.store.cache import cache_root
from dali.store.folders import existing
from dali.units import size

LOW_DISK = 10 * 2**30  # bytes, fewer than most models' files take
OLD = 365  # days
MEASURE = "Measure it, in about a minute: `dali bench hw`."


class Finding(NamedTuple):
    """`problem`: what is wrong, "" for nothing; `fix`: the command that mends it; `broken`: dali cannot work well so."""

    what: str
    value: str
    problem: str = ""
    fix: str = ""
    broken: bool = False


def findings() -> list[Finding]:
    """All that can be told without torch."""
    return [*_system(), _kernels(), _gpu(), _profile(), *_folders()]


def own_profile() -> tuple[Profile | None, list[str]]:
    """This machine's profile, and what is said of one that cannot be used."""
    said: list[str] = []
    return own.find(said.append), said


def _system() -> Iterator[Finding]:
    machine = this_machine(cache_root())
    yield Finding("dali", __version__)
    yield Finding("processor", f"{machine.cpu}, {machine.cores} cores")
    yield Finding("memory", f"{size(available_ram())} free of {size(int(psutil.virtual_memory().total))}")


def _kernels() -> Finding:
    if not compiled.AVAILABLE:
        return Finding(
            "kernels",
            "torch's",
            "dali was built without its compiled kernels: torch computes, several times slower.",
            "Install a C++ compiler and reinstall dali: `pip install --force-reinstall --no-binary dali dali`.",
            broken=True,
        )
    if not compiled.enabled():
        return Finding(
            "kernels",
            "torch's",
            f"{compiled.VARIABLE}=torch turns compiled kernels off.",
            f"Unset it: `unset {compiled.VARIABLE}`.",
        )
    others = ", ".join(name for name in compiled.variants() if name != compiled.variant())
    return Finding("kernels", f"{compiled.variant()}{f' (also built here: {others})' if others else ''}")


def _gpu() -> Finding:
    there = this_machine(cache_root()).gpu
    try:
        check_gpu("cuda")
    except DaliError as error:
        why = error.problem.partition(", but ")[2].rstrip(".")
        if there:
            return Finding(
                "GPU",
                there,
                f"{there} is not used: {why}.",
                "Install a CUDA build of torch: `pip install torch`.",
            )
        return Finding("GPU", f"none ({why})")
    return Finding("GPU", there or "there can be one: torch was built for it, and its driver is here")


def _profile() -> Finding:
    profile, said = own_profile()
    if profile is None:
        return Finding(
            "profile",
            "none",
            said[0] if said else "This machine was never measured: predictions are rough.",
            MEASURE,
        )
    value = f"measured on {profile.date} by dali {profile.dali}, {own.own_path()}"
    with suppress(ValueError):
        if (days := (date.today() - date.fromisoformat(profile.date)).days) > OLD:
            return Finding("profile", value, f"It is {days} days old.", MEASURE)
    if not profile.has_disk:
        return Finding("profile", value, "It says nothing of the disk that holds dali's cache now.", MEASURE)
    return Finding("profile", value)


def _folders() -> Iterator[Finding]:
    import huggingface_hub.constants

    for what, folder, variable in (
        ("cache", cache_root(), "DALI_CACHE_DIR"),
        ("models from the hub", Path(huggingface_hub.constants.HF_HUB_CACHE), "HF_HUB_CACHE"),
        ("settings", own.config_root(), "DALI_CONFIG_DIR"),
    ):
        yield _folder(what, folder, variable)


def _folder(what: str, folder: Path, variable: str) -> Finding:
    there = existing(folder)
    free = shutil.disk_usage(there).free
    value = f"{folder}, {size(_held(folder))}; {size(free)} free"
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        return Finding(
            what,
            value,
            f"{folder} cannot be written.",
            f"Make it writable, or name another: `export {variable}=DIR`.",
            broken=True,
        )
    if free < LOW_DISK and what != "settings":
        return Finding(
            what,
            value,
            f"Only {size(free)} are free for it.",
            f"Free some, or name another disk: `export {variable}=DIR`.",
        )
    return Finding(what, value)


def _held(folder: Path) -> int:
    """Bytes of the files in it, each once, however many links lead to it."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total
