"""What a sweep shows as text: a table and JSON rows. Nothing in them depends on when or where they were made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dali.replay.sweep import Outcome, Row

HEADINGS = {
    "policy": "policy",
    "trace": "trace",
    "profile": "profile",
    "shape": "shape",
    "batch": "batch",
    "cache_slots": "slots",
    "hit_rate": "hits",
    "cold_hit_rate": "cold",
    "random_hit_rate": "random",
    "belady_bypass_hit_rate": "belady-bypass",
    "tokens_per_second": "tok/s",
    "bound_tokens_per_second": "bound",
    "regret": "regret",
    "signals": "signals",
}
NOTES = (
    "hits, cold: share of active experts found resident, all sequences through one cache, and each sequence from a fresh start.",
    "random, belady-bypass: evicting at random, and the offline optimum of a cache a layer that fills on demand and may leave an "
    "expert out.",
    "tok/s, bound: generated tokens of all sequences together, modelled; no policy with so many slots a layer exceeds the bound. "
    "It lets each step find the residents that suit it best, so more slots than a step's experts need do not raise it.",
    "regret: time lost against the best policy of the cell in hindsight.",
)
SIGNALS = "signals: what a policy decides by and the trace lacks; `dali trace --hidden` records gate_inputs and embeddings, too."


def notes(rows: Sequence[Row]) -> list[str]:
    """What the columns mean, and what to do about those that say it."""
    missing = any(row.get("signals") not in (None, "complete") for row in rows)
    return [*NOTES, SIGNALS] if missing else [*NOTES]


def as_json(outcomes: Sequence[Outcome]) -> str:
    rows = ",\n".join(f"    {json.dumps(outcome.row)}" for outcome in outcomes)
    return f'{{"rows": [\n{rows}\n]}}\n'


def table(outcomes: Sequence[Outcome]) -> str:
    """The rows under short headings, and what the headings mean."""
    rows = [outcome.row for outcome in outcomes]
    names = columns(rows)
    lines = [[HEADINGS[name] for name in names], *([cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(names))]
    numeric = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in names]
    text = []
    for line in lines:
        cells = zip(line, widths, numeric, strict=True)
        text.append(
            "  ".join(one.rjust(width) if right else one.ljust(width) for one, width, right in cells).rstrip()
        )
    off = {row["policy"]: row["lossy_parts_left_out"] for row in rows if row.get("lossy_parts_left_out")}
    lossy = ", ".join(f"{policy} ({', '.join(parts)})" for policy, parts in off.items())
    return "\n".join(
        [*text, "", *notes(rows), *([f"off, as they change the output: {lossy}."] if off else [])]
    )


def columns(rows: Sequence[Row]) -> list[str]:
    """Those of HEADINGS in which any row holds something."""
    return [name for name in HEADINGS if any(row.get(name) is not None for row in rows)]


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
