"""Experts that stay on disk because RAM cannot hold them: whether that can be done, and with how much of them in RAM."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dali.hardware import own
from dali.hardware.free_memory import available_ram, own_memory
from dali.kernels.expert import ExpertLayout
from dali.loading import room
from dali.loading.loaded import largest
from dali.loading.room import LOADED, MARGIN, STEP, DoesNotFit, too_small
from dali.options import LoadOptions
from dali.store.direct_io import ReadError
from dali.store.disk_pool import DiskPlan, DiskPool
from dali.store.packed.header import StoreHeader
from dali.store.packed.reader import DamagedStore, StoreReader
from dali.store.packed.speed import measure_speed


def fit(
    choose: Callable[[], list[ExpertLayout]],
    what: object,
    options: LoadOptions,
    compiled: bool,
    top_k: int,
    config: Any,
) -> tuple[list[ExpertLayout], DiskPlan | None]:
    """The layouts that `choose` finds to fit RAM; where none does, those it comes nearest with, and how they are kept on disk.

    DaliError where that cannot be, or the budget does not even have room for a token's experts of one layer beside all else.
    """
    try:
        return choose(), None
    except DoesNotFit as misfit:
        if not compiled or options.device != "cpu" or sys.platform == "win32":
            raise  # experts on disk are for the compiled kernels of the CPU
        return misfit.layouts, _plan(misfit, what, options, top_k, config)


def _plan(misfit: DoesNotFit, what: object, options: LoadOptions, top_k: int, config: Any) -> DiskPlan:
    ram = options.ram_bytes
    used = own_memory()
    allowed = used + available_ram() - MARGIN if ram is None else ram
    layout = largest(misfit.layouts)
    least = used + LOADED + misfit.dense_bytes + step_bytes(layout, top_k, config, STEP)
    least += top_k * layout.record_bytes
    if least > allowed:
        raise too_small(what, least, ram, allowed)
    return DiskPlan(allowed, ram is not None, top_k)


def step_bytes(layout: ExpertLayout, top_k: int, config: Any, tokens: int) -> int:
    """What a step of so many tokens takes for a while, at most."""
    config = config.get_text_config()
    dense = int(getattr(config, "intermediate_size", None) or 0)
    return room.step_bytes(
        layout.shape.hidden, layout.shape.intermediate, top_k, dense, int(config.vocab_size), tokens
    )


def open_pool(store: Path, plan: DiskPlan, notify: Callable[[str], None]) -> DiskPool:
    """The pool of a store, with no more slots than it cannot do without: `dali.offload.ram` gives it the others. DamagedStore: it
    cannot be used."""
    with StoreReader(store) as reader:
        header = reader.header
    most = min(header.records, max(plan.ram // header.record_bytes, plan.least_slots))
    return DiskPool(store, min(plan.least_slots, most), most, _depth(store, header, notify))


def _depth(store: Path, header: StoreHeader, notify: Callable[[str], None]) -> int:
    """Reads under way at once: as many as this machine's profile says of the disk that stores lie on, else as a trial finds."""
    mine = own.find(notify)
    if mine is not None and mine.has_disk:
        depth = int(mine["disk_queue_depth"])
        notify(f"The disk gets {depth} {'reads' if depth > 1 else 'read'} at once, by {own.origin(mine)}.")
        return depth
    try:
        return measure_speed(store, header).depth
    except (OSError, ReadError) as error:
        raise DamagedStore(store, str(error)) from error
