"""What a comparison shows as text: a ranked table and JSON rows. Nothing in them depends on when or where they were made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dali.replay.sweep import Outcome, Row

GROUP = ("trace", "profile", "shape", "batch", "cache_slots", "ram")  # what policies are compared under
HEADINGS = {
    "policy": "policy",
    "hit_rate": "hits",
    "cold_hit_rate": "cold",
    "accelerator_hit_rate": "accel",
    "ram_hit_rate": "RAM",
    "ahead_rate": "ahead",
    "bytes_read_per_token": "MB/tok",
    "read_amplification": "amplif",
    "stall_share": "stall",
    "tokens_per_second": "tok/s",
    "regret": "regret",
    "signals": "signals",
}
BOUNDS = {  # the rows beneath a group's: name -> where it stands in a row, and under which heading
    "bound": ("bound_tokens_per_second", "tokens_per_second"),
    "cpu alone": ("cpu_alone_tokens_per_second", "tokens_per_second"),
    "belady-bypass": ("belady_bypass_hit_rate", "hit_rate"),
    "random": ("random_hit_rate", "hit_rate"),
    "belady": ("belady_disk_hit_rate", "hit_rate"),
}
NOTES = (
    "hits, cold: share of active experts found resident, all sequences through one cache, and each sequence from a fresh start.",
    "random, belady-bypass: evicting at random, and the offline optimum of a cache a layer that fills on demand and may leave an "
    "expert out.",
    "tok/s, bound: generated tokens of all sequences together, modelled; no policy with so many slots a layer exceeds the bound. "
    "It lets each step find the residents that suit it best, so more slots than a step's experts need do not raise it.",
    "cpu alone: the same machine without its accelerator; what is slower than that had better not be used. dali's choice: a live "
    "run would not use it, had `dali bench hw` measured this.",
    "regret: time lost against the best policy of the group in hindsight.",
)
ON_DISK = (
    "hits: share of active experts that needed no read from disk; accel: that were resident on the accelerator; RAM, ahead: of "
    "those that have to be in RAM, found there since an earlier use, and read ahead in time.",
    "belady: the offline optimum of a pool of as many places for all layers. It knows nothing of time, and reads on demand.",
    "MB/tok, amplif: megabytes read for a generated token; bytes read over those of the experts that were read and used.",
    "stall: share of the time in which layers waited for reads alone.",
    "tok/s, bound: generated tokens of all sequences together, modelled. No policy exceeds the bound: computing with all "
    "experts in RAM, or the reads that nobody can avoid at the disk's bandwidth.",
    "regret: time lost against the best policy of the group in hindsight.",
)
SIGNALS = "signals: what a policy decides by and the trace lacks; `dali trace --hidden` records gate_inputs and embeddings, too."
EXPLAINED = "All speeds are modelled. `dali simulate --explain` says what the columns mean."


def notes(rows: Sequence[Row]) -> list[str]:
    """What the columns mean, and what to do about those that say it."""
    said = ON_DISK if any(row.get("ram") is not None for row in rows) else NOTES
    return [*said, SIGNALS] if _lacks_signals(rows) else [*said]


def as_json(outcomes: Sequence[Outcome]) -> str:
    rows = ",\n".join(f"    {json.dumps(outcome.row)}" for outcome in outcomes)
    return f'{{"rows": [\n{rows}\n]}}\n'


def ranked(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each group that was compared, best first: by speed, or by hits where nothing is timed."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in GROUP), []).append(row)
    return [sorted(group, key=_worth, reverse=True) for group in groups.values()]


def _worth(row: Row) -> float:
    speed = row["tokens_per_second"]
    return float(row["hit_rate"] if speed is None else speed)


def table(outcomes: Sequence[Outcome], explain: bool = False) -> str:
    """A table a group, the bounds beneath; `explain`: what the headings mean, too."""
    rows = [outcome.row for outcome in outcomes]
    names, groups = columns(rows), ranked(rows)
    blocks = [
        [[HEADINGS[name] for name in names], *_lines(group, names), *_bounds(group, names)]
        for group in groups
    ]
    widths = [max(len(line[index]) for block in blocks for line in block) for index in range(len(names))]
    numeric = [name not in ("policy", "signals") for name in names]
    text = []
    for group, block in zip(groups, blocks, strict=True):
        text.append(heading(group[0]))
        for line in block:
            cells = zip(line, widths, numeric, strict=True)
            aligned = [one.rjust(width) if right else one.ljust(width) for one, width, right in cells]
            text.append(f"  {'  '.join(aligned)}".rstrip())
        text.append("")
    if explain:
        text += notes(rows)
    else:
        text += [EXPLAINED, SIGNALS] if _lacks_signals(rows) else [EXPLAINED]
    off = {row["policy"]: row["lossy_parts_left_out"] for row in rows if row.get("lossy_parts_left_out")}
    if off:
        parts = ", ".join(f"{policy} ({', '.join(parts)})" for policy, parts in off.items())
        text.append(f"off, as they change the output: {parts}.")
    return "\n".join(text)


def heading(row: Row) -> str:
    """What a group's rows have in common."""
    if row.get("ram") is not None:
        above = f", {row['slots']} slots a layer on the accelerator" if row["slots"] else ", no accelerator"
        reads = ", others read through the page cache" if row.get("reads_plainly") else ""
        places = f"RAM for {row['ram_places']} experts ({row['ram']}){reads}{above}"
        return (
            f"{row['trace']}: profile {row['profile']}, {sizes(row['shape'])}, batch {row['batch']}, {places}"
        )
    timed = [] if row["profile"] is None else [f"profile {row['profile']}", sizes(row["shape"])]
    slots = f"{row['slots']} slots a layer"
    said = slots if str(row["slots"]) == row["cache_slots"] else f"{slots} ({row['cache_slots']})"
    common = ", ".join([*timed, f"batch {row['batch']}", said])
    return f"{row['trace']}: {common}"


def sizes(shape: str) -> str:
    """Whose sizes the experts have."""
    return "the model's own sizes" if shape == "own" else f"recorded routing with the sizes of {shape}"


def _lines(group: Sequence[Row], names: Sequence[str]) -> list[list[str]]:
    return [[shown(row, name) for name in names] for row in group]


def _bounds(group: Sequence[Row], names: Sequence[str]) -> list[list[str]]:
    """A group's bounds, under the headings of what they bound; those that are policies of it have their own row."""
    lines, row = [], group[0]
    for bound, (key, under) in BOUNDS.items():
        if row.get(key) is not None and bound not in {row["policy"] for row in group}:
            chosen = ", dali's choice" if bound == "cpu alone" and row.get("cpu_alone_chosen") else ""
            said = {"policy": f"({bound}{chosen})", under: cell(row[key])}
            lines.append([said.get(name, "") for name in names])
    return lines


def _lacks_signals(rows: Sequence[Row]) -> bool:
    return any(row.get("signals") not in (None, "complete") for row in rows)


def columns(rows: Sequence[Row]) -> list[str]:
    """Those of HEADINGS in which any row holds something."""
    return [name for name in HEADINGS if any(row.get(name) is not None for row in rows)]


def shown(row: Row, name: str) -> str:
    """A row's value as text."""
    value = row.get(name)
    if name == "bytes_read_per_token" and value is not None:
        return cell(value / 1e6)
    return f"{100 * value:.1f} %" if name == "regret" and value is not None else cell(value)


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
