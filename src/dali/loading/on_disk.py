"""Experts that stay on disk because RAM cannot hold them: whether that can be done, and with how much of them in RAM."""

from __future__ import annotations

import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from dali.errors import DaliError, UsageError, parameter
from dali.hardware import own
from dali.hardware.cost import disk_costs
from dali.hardware.free_memory import available_ram, own_memory
from dali.hooks.calls import ModelCalls
from dali.kernels.expert import ExpertLayout
from dali.loading.budget import DoesNotFit
from dali.loading.loaded import largest
from dali.options import LoadOptions
from dali.store.direct_io import ReadError
from dali.store.disk_pool import DiskPlan, DiskPool
from dali.store.packed.builder import Progress
from dali.store.packed.header import StoreHeader
from dali.store.packed.reader import DamagedStore, StoreReader
from dali.store.packed.speed import measure_speed
from dali.units import enough, size

MARGIN = 2**29  # bytes left to others where nobody says how much dali may take
STEP = 512  # prompt tokens of chunks in a budget that is neither large nor small
LEAST_STEP = 64  # and of the smallest ones
FEWEST_TOKENS = 512  # of context, below which a budget is refused
SPREAD = 2**24  # bytes by which what a process has differs from one run to the next
WORKING = (
    2**26
)  # bytes for what does not grow with a step: buffers, readers, a server's threads, the allocator's own
LOGIT_ROWS = 24  # of the vocabulary: logits of answers side by side, and what choosing a token makes of one's
LOADED = (
    2**26
)  # bytes that loading takes beside weights: modules, tables, the model's own Python; known only when it is done


def fit(
    choose: Callable[[], list[ExpertLayout]],
    what: object,
    options: LoadOptions,
    compiled: bool,
    calls: ModelCalls,
    skeleton: Any,
    dtype: torch.dtype,
    stays: Callable[[list[ExpertLayout]], int] = lambda layouts: 0,
) -> tuple[list[ExpertLayout], DiskPlan | None]:
    """The layouts that `choose` finds to fit RAM; where none does, those it comes nearest with, and how they are kept on disk.

    DaliError where that cannot be, or the budget does not even have room for a token's experts of one layer beside all else.
    `calls` and `dtype`: of the model, `skeleton`: it on meta; `stays`: bytes of its dense weights that then are on disk, too.
    """
    try:
        return choose(), None
    except DoesNotFit as misfit:
        if not compiled or sys.platform == "win32":
            raise  # experts on disk are for compiled kernels
        if options.lossy:
            raise UsageError(
                f"RAM has no room for all experts of {what}, which {parameter('lossy')} needs there.",
                f"Leave {parameter('lossy')} out, raise {parameter('ram')}, or choose a smaller model.",
            ) from misfit
        if options.device_kind == "sim" and (profile := options.planning_profile()) is not None:
            disk_costs(profile)
        kept = calls.kept * (1 if options.in_q8 else dtype.itemsize)
        misfit.dense_bytes -= stays(misfit.layouts)
        windows = any(calls.windows.values())  # which keep less of a long context
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
    chunk = LEAST_STEP if alone and layout.format.quantized else STEP
    least = used + LOADED + misfit.dense_bytes + step_bytes(layout, top_k, skeleton, chunk)
    asked = options.ctx_size or FEWEST_TOKENS
    fewest = min(asked, FEWEST_TOKENS)
    least += top_k * layout.record_bytes + fewest * kept
    if least > allowed:
        more = (asked - fewest) * kept if alone and not windows else 0
        raise too_small(what, least + more, ram, allowed)
    return DiskPlan(allowed, ram is not None, top_k)


def step_bytes(layout: ExpertLayout, top_k: int, model: Any, tokens: int) -> int:
    """What a step of so many tokens of a transformers model takes for a while, at most.

    A token has its row of the hidden state in several places, what the widest linear of a layer makes of it (queries, keys,
    values and what attention makes of them; or gate, up and their product), each of its experts' rows, and one expert's values
    between its matrices: all in float32, and more than any family was seen to have (tests/loading/test_step_bytes.py).
    """
    shape, head = layout.shape, model.get_output_embeddings()
    widths = (getattr(module, "out_features", 0) for module in model.modules() if module is not head)
    token = (36 + 4 * top_k) * shape.hidden + 24 * max(widths) + 8 * shape.intermediate
    keeps_rows = "logits_to_keep" in signature(type(model).forward).parameters
    rows = LOGIT_ROWS if keeps_rows else LOGIT_ROWS + tokens
    return WORKING + tokens * token + rows * 4 * int(model.config.get_text_config().vocab_size)


def too_small(what: object, least: int, ram: int | None, allowed: int) -> DaliError:
    """A budget in which not even a token's experts of one layer have room."""
    limit = f"{parameter('ram')} allows {size(allowed)}" if ram is not None else f"{size(allowed)} can be had"
    problem = f"{what} needs {size(least)} of memory even with its experts on disk; {limit}."
    if ram is None:
        return DaliError(problem, "Close other programs, or choose a smaller model.")
    return DaliError(problem, f"Give {parameter('ram')} {enough(least + SPREAD)} or more.")


def told(
    path: Path, header: StoreHeader, start: Callable[[], Progress], notify: Callable[[str], None]
) -> Callable[[], Progress]:
    """`start`, which shows how a store is packed, and before that is said what it takes."""

    def tell_and_start() -> Progress:
        notify(
            f"RAM cannot hold the experts: they are packed into {path}, once, which takes {size(header.file_bytes)}."
        )
        return start()

    return tell_and_start


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
