"""Comparing policies from Python: what `dali simulate` does, as plain rows."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike, fspath
from typing import Any, Literal

from dali.errors import UsageError
from dali.replay.cells import plan, spelt_out
from dali.replay.ray_pool import check_ray
from dali.replay.report.table import ranked
from dali.replay.sweep import Row, sweep

PROFILE = "paper"
SHAPE = "own"
SLOTS = ("25%", "50%")


def compare(
    traces: str | PathLike[str] | Iterable[str | PathLike[str]],
    policies: str | Iterable[str] = "all",
    *,
    profiles: str | Iterable[str] = PROFILE,
    shapes: str | Iterable[str] = SHAPE,
    batches: int | Iterable[int] = 1,
    cache_slots: str | int | Iterable[str | int] | None = None,
    ram: str | Iterable[str] = (),
    tokens: int | None = None,
    seed: int = 0,
    cache_only: bool = False,
    processes: int | Literal["ray"] = 1,
) -> list[Row]:
    """Replay traces under policies: one plain row, a dict of text and numbers, for every combination; within those that differ in
    the policy alone the best comes first. `pandas.DataFrame(rows)` takes them as they are.

    `traces`: .npz files. `policies`: names of systems, "system:variant", files that end in .py, or "all" of dali's own;
    with `cache_only`, of a cache alone (dali.replay.eviction). `profiles`, `shapes`: of the hardware, and whose sizes the experts
    have ("own": the recorded model's). `cache_slots`: residents a layer, as shares or numbers, 25 % and 50 % unless given. `ram`:
    experts on disk, and so much memory for them, as sizes ("8GiB") or shares of all experts ("25%"); `policies` are then those of
    the pool there (dali.replay.disk.pools), and there is no accelerator unless `cache_slots` are given. `tokens`: generated ones
    of each trace, at most. `processes`: to share the work; more than 1 only from a script that guards its main part by
    `if __name__ == "__main__"`; "ray": those of a Ray cluster. UsageError, before anything is replayed: what cannot be meant.
    DaliError: a trace, or a policy, is broken.
    """
    if processes == "ray":
        check_ray()
    memory = _many(ram, str)
    if memory and cache_only:
        raise UsageError("A cache alone has no disk beneath it, so no `ram`.", "Leave one of both out.")
    if cache_slots is None:
        cache_slots = ("0",) if memory else SLOTS
    cells = plan(
        [fspath(trace) for trace in _many(traces, (str, PathLike))],
        spelt_out(_many(policies, str), cache_only, bool(memory)),
        _many(profiles, str),
        _many(shapes, str),
        _many(batches, int),
        [str(slots) for slots in _many(cache_slots, (str, int))],
        tokens,
        seed,
        cache_only,
        memory,
    )
    rows = [outcome.row for outcome in sweep(cells, processes=processes)]
    return [row for group in ranked(rows) for row in group]


def _many(given: Any, kind: type | tuple[type, ...]) -> list[Any]:
    """One thing as a list of it."""
    return [given] if isinstance(given, kind) else list(given)
