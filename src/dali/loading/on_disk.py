"""Experts that stay on disk because RAM cannot hold them: whether that can be done, and with how much of them in RAM."""

from __future__ import annotations

import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from dali.errors import DaliError
from dali.hardware import own
from dali.hardware.cost import disk_costs, reading
from dali.hardware.free_memory import available_ram, own_memory
from dali.hooks.calls import ModelCalls
from dali.kernels.expert import ExpertLayout
from dali.loading import room
from dali.loading.loaded import largest
from dali.loading.room import (
    FEWEST_TOKENS,
    LOGIT_ROWS,
    MARGIN,
    DoesNotFit,
    beyond_headroom,
    least_bytes,
    least_step,
    lossy_needs_ram,
    too_small,
)
from dali.options import LoadOptions
from dali.store.direct_io import ReadError
from dali.store.disk_pool import DiskPlan, DiskPool
from dali.store.packed.builder import Progress
from dali.store.packed.header import StoreHeader
from dali.store.packed.reader import DamagedStore, StoreReader
from dali.store.packed.speed import measure_speed
from dali.store.page_cache import cached_bytes
from dali.units import size


def fit(
    choose: Callable[[int | None], list[ExpertLayout]],
    what: object,
    options: LoadOptions,
    compiled: bool,
    calls: ModelCalls,
    skeleton: Any,
    dtype: torch.dtype,
    stays: Callable[[list[ExpertLayout]], int] = lambda layouts: 0,
) -> tuple[list[ExpertLayout], DiskPlan | None]:
    """The layouts that `choose` finds to fit RAM, or a budget of so many bytes; where none does, those it comes nearest with, and
    how they are kept on disk. A budget that was asked for has room for the context that was asked for, too.

    DaliError where that cannot be, or the budget does not even have room for a token's experts of one layer beside all else.
    `calls` and `dtype`: of the model, `skeleton`: it on meta; `stays`: bytes of its dense weights that then are on disk, too.
    """
    ram, windows = options.ram_bytes, any(calls.windows.values())  # which keep less of a long context
    kept = calls.kept * (1 if options.in_q8 else dtype.itemsize)
    if ram is not None and compiled and options.device == "cpu" and not windows:
        ram -= beyond_headroom((options.ctx_size or 0) * kept)
    try:
        return choose(ram), None
    except DoesNotFit as misfit:
        if not compiled or sys.platform == "win32":
            raise  # experts on disk are for compiled kernels
        if options.lossy:
            raise lossy_needs_ram(what) from misfit
        if options.device_kind == "sim" and (profile := options.planning_profile()) is not None:
            disk_costs(profile)
        misfit.dense_bytes -= stays(misfit.layouts)
        return misfit.layouts, _plan(misfit, what, options, calls.top_k, skeleton, kept, windows)


def _plan(
    misfit: DoesNotFit,
    what: object,
    options: LoadOptions,
    top_k: int,
    skeleton: Any,
    kept: int,
    windows: bool,
) -> DiskPlan:
    """`kept`: bytes of a token's keys and values, at least, in all layers unless there are `windows`. What is refused is told the
    budget that has room for the context asked for, too."""
    ram = options.ram_bytes
    used = own_memory()
    allowed = used + available_ram() - MARGIN if ram is None else ram
    layout = largest(misfit.layouts)
    alone = options.device == "cpu"
    chunk = least_step(alone and layout.format.quantized)
    fewest = min(options.ctx_size or FEWEST_TOKENS, FEWEST_TOKENS)
    step = step_bytes(layout, top_k, skeleton, chunk)
    used += _cached(layout.record_bytes)
    least = least_bytes(used, misfit.dense_bytes, step, top_k * layout.record_bytes, fewest * kept)
    if least > allowed:
        in_ram = options.device_kind != "cuda"  # whose own memory has keys and values
        more = ((options.ctx_size or fewest) - fewest) * kept if in_ram and not windows else 0
        raise too_small(what, least + more, ram, allowed)
    return DiskPlan(allowed, ram is not None, top_k)


def _cached(slot_bytes: int) -> int:
    """Bytes that reads will have in the page cache, by this machine's profile. What is wrong with that is told by `open_pool`."""
    try:
        mine = own.read()
    except DaliError:
        return 0
    disk = reading(mine) if mine.has_disk else None
    return 0 if disk is None else cached_bytes(disk.plain, disk.depth, slot_bytes)


def step_bytes(layout: ExpertLayout, top_k: int, model: Any, tokens: int) -> int:
    """What a step of so many tokens of a transformers model takes for a while, at most."""
    shape, head = layout.shape, model.get_output_embeddings()
    widest = max(getattr(module, "out_features", 0) for module in model.modules() if module is not head)
    keeps_rows = "logits_to_keep" in signature(type(model).forward).parameters
    rows = LOGIT_ROWS if keeps_rows else LOGIT_ROWS + tokens
    vocab = int(model.config.get_text_config().vocab_size)
    return room.step_bytes(shape.hidden, shape.intermediate, top_k, widest, tokens, rows * vocab)


def told(
    path: Path, header: StoreHeader, start: Callable[[], Progress], notify: Callable[[str], None]
) -> Callable[[], Progress]:
    """`start`, which shows how a store is packed, and before that is said what it takes."""

    def tell_and_start() -> Progress:
        notify(
            f"RAM has no sure room for all experts beside the rest: they are packed into {path}, once, which takes "
            f"{size(header.file_bytes)}."
        )
        return start()

    return tell_and_start


def open_pool(store: Path, plan: DiskPlan, notify: Callable[[str], None]) -> DiskPool:
    """The pool of a store, with no more slots than it cannot do without: `dali.offload.ram` gives it the others. DamagedStore: it
    cannot be used."""
    with StoreReader(store) as reader:
        header = reader.header
    most = min(header.records, max(plan.ram // header.record_bytes, plan.least_slots))
    return DiskPool(store, min(plan.least_slots, most), most, *_reading(store, header, notify))


def _reading(store: Path, header: StoreHeader, notify: Callable[[str], None]) -> tuple[int, bool]:
    """Reads under way at once, and whether they go through the page cache: as this machine's profile says of the disk that stores
    lie on; else past it, and as many as a trial finds."""
    mine = own.find(notify)
    if mine is not None and mine.has_disk:
        disk = reading(mine)
        how = (
            f" through the page cache, {mine.plain_share:.1f} times as fast as past it" if disk.plain else ""
        )
        reads = "reads" if disk.depth > 1 else "read"
        notify(f"The disk gets {disk.depth} {reads} at once{how}, by {own.origin(mine)}.")
        return disk.depth, disk.plain
    try:
        return measure_speed(store, header).depth, False
    except (OSError, ReadError) as error:
        raise DamagedStore(store, str(error)) from error
