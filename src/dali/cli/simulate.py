"""`dali simulate`: recorded routing, replayed under policies and hardware profiles."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import date
from typing import Literal

import dali
from dali.cli.flags.always import Always
from dali.cli.flags.explained import EXPLAIN, TABLE, check_explain, write_explained
from dali.cli.flags.kinds import COUNTS, FILE, NAMES, whole
from dali.cli.flags.option import SWITCH, Kind, flag
from dali.cli.flags.verb import Verb
from dali.cli.flags.written import check_written, write_whole
from dali.cli.importing import importing
from dali.cli.terminal import log, passing_note
from dali.errors import UsageError
from dali.hardware import own
from dali.hardware.profile import OWN
from dali.replay.ray_pool import check_ray

RAY = "ray"


def _workers(text: str) -> int | str:
    return RAY if text == RAY else whole(1).parse(text)


WORKERS = Kind("N", f"a whole number from 1, or {RAY}", _workers)
PROFILE = "paper"  # dali.replay.comparison's, which takes long to import; a test compares them


@dataclass(frozen=True)
class Settings(Always):
    policy: tuple[str, ...] | None = flag(
        "comparison",
        NAMES,
        "policies of `dali run --list-policies` and files that end in .py, with commas between them, or all (default) of dali's "
        "own; their lossy parts off",
        variable="DALI_SIMULATE_POLICY",
    )
    cache_slots: tuple[str, ...] | None = flag(
        "comparison", NAMES, "residents a layer, as shares of its experts or numbers (default: 25%%,50%%)"
    )
    ram: tuple[str, ...] | None = flag(
        "comparison",
        NAMES,
        "experts on disk, and so much RAM for them, as sizes (8GiB,16GiB) or shares of all experts (25%%,50%%). Policies are "
        "then those of the pool in RAM (default, balanced, fading, lfu, lru) and files that end in .py; the CPU computes all, "
        "unless --cache-slots says how many residents an accelerator has above it, under dali's default",
        variable="DALI_SIMULATE_RAM",
    )
    batch: tuple[int, ...] | None = flag(
        "comparison", COUNTS, "sequences side by side in a step (default: 1)"
    )
    profile: tuple[str, ...] | None = flag(
        "comparison",
        NAMES,
        f"hardware profiles, by name or file (default: {OWN}, this machine as `dali bench hw` measured it, else {PROFILE})",
        variable="DALI_SIMULATE_PROFILE",
    )
    shape: tuple[str, ...] | None = flag(
        "comparison", NAMES, "whose sizes the experts have (default: own, the recorded model's)"
    )
    tokens: int | None = flag(
        "comparison", whole(1), "generated tokens to replay of each trace, at most (default: all)"
    )
    cache_only: bool = flag("comparison", SWITCH, "hit rates of a cache alone, without a timeline")
    seed: int | None = flag(
        "comparison",
        whole(0),
        "of the first residents and of random eviction (default: 0)",
        variable="DALI_SIMULATE_SEED",
    )
    workers: int | Literal["ray"] | None = flag(
        "work",
        WORKERS,
        f"processes to share the work, at most (default: all cores), or {RAY} for those of a Ray cluster",
    )
    json: str | None = flag(
        "output", FILE, 'write the rows here, as {"rows": [...]}', variable="DALI_SIMULATE_JSON"
    )
    html: str | None = flag("output", FILE, "write a self-contained report with plots here")
    explain: str | None = flag(
        "output",
        EXPLAIN,
        "say what the table's columns mean; into a FILE, of a single replay, what each expert did and why (.json: events for "
        "ui.perfetto.dev) or a picture of one step (.svg)",
    )


VERB = Verb(
    "simulate",
    "Replay traces event by event through the policies, residency and timeline of live runs, computing nothing, and compare: hit "
    "rates beside the offline optimum, modelled tokens a second beside a bound. Traces come from `dali trace`.",
    Settings,
    headings=("comparison", "work", "output"),
    words="TRACE.npz [TRACE.npz ...]",
)


def main(settings: Settings) -> int:
    if not settings.words:
        raise UsageError("`dali simulate` needs a trace.", "Record one: `dali trace MODEL -o FILE.npz`.")
    for file in (settings.json, settings.html):
        if file is not None:
            check_written(file)
    if settings.cache_only and (settings.profile or settings.shape):
        raise UsageError("--cache-only has no times, so no --profile and no --shape.", "Leave them out.")
    if settings.ram and settings.cache_only:
        raise UsageError("--cache-only has no disk beneath the cache, so no --ram.", "Leave one of both out.")
    if settings.explain:
        _check_explained(settings)
    if settings.workers == RAY:
        check_ray()
    passing_note("Reading the traces ...")
    with importing():
        from dali.replay import cells, comparison, sweep
        from dali.replay.report import page, table

    profiles = settings.profile or (_profile(settings),)
    planned = cells.plan(
        settings.words,
        cells.spelt_out(settings.policy or ("all",), settings.cache_only, bool(settings.ram)),
        profiles,
        settings.shape or (comparison.SHAPE,),
        settings.batch or (1,),
        settings.cache_slots or (("0",) if settings.ram else comparison.SLOTS),
        settings.tokens,
        settings.seed or 0,
        settings.cache_only,
        settings.ram or (),
    )
    if settings.explain and len(planned) != 1:
        raise UsageError(
            f"--explain {settings.explain} is of one replay, and these are {len(planned)}.",
            "Name one trace, and one of --policy, --cache-slots, --batch, --profile and --shape.",
        )
    outcomes = sweep.sweep(
        planned, lambda done: passing_note(f"Replayed {done} of {len(planned)} cells"), settings.workers
    )
    try:  # files first: whoever reads the table may stop in the middle of it
        if settings.json is not None:
            write_whole(settings.json, table.as_json(outcomes))
        if settings.html is not None:
            passing_note("Drawing ...")
            write_whole(settings.html, page.page(outcomes, planned, _made(settings)))
            passing_note()
            log.info(f"{settings.html}: tables and plots, for a browser")
        if settings.explain:
            write_explained(settings.explain, sweep.explained(planned[0]), "modelled")
    finally:  # a full disk must not take the table, too
        passing_note()
        print(table.table(outcomes, settings.explain == TABLE))
    return 0


def _check_explained(settings: Settings) -> None:
    assert settings.explain is not None
    check_explain(settings.explain)
    for name in ("cache_only", "ram"):
        if getattr(settings, name):
            raise UsageError(
                f"--explain FILE is of an accelerator's timeline, so no --{name.replace('_', '-')}.",
                "Leave one of both out.",
            )


def _profile(settings: Settings) -> str:
    """This machine's own profile, if it says all that the replays ask of it; else the published one."""
    if settings.cache_only or settings.workers == RAY:  # whose machines have profiles of their own
        return PROFILE
    mine = own.find(log.warning)
    slots = settings.cache_slots or (("0",) if settings.ram else ("50%",))
    accelerated = any(text.rstrip("%") != "0" for text in slots)
    if mine is None or (settings.ram and not mine.has_disk) or (accelerated and not mine.has_accelerator):
        return PROFILE
    log.info(f"Times are those of {own.origin(mine)}.")
    return OWN


def _made(settings: Settings) -> str:
    """The command that makes the report again, and the day."""
    words = ["dali", "simulate", *settings.words]
    for option in VERB.options:
        value = getattr(settings, option.key)
        if option.heading != "comparison" or not value:
            continue
        words.append(f"--{option.name}")
        if value is not True:
            words.append(",".join(map(str, value)) if isinstance(value, tuple) else str(value))
    return f"Made on {date.today()} by dali {dali.__version__}: {shlex.join(words)}"
