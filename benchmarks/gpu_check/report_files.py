"""The report of a check: report.json, report.md for people, and profile.json for `--profile`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dali.hardware import profile as profiles
from dali.hardware.profile import OPTIONAL, UNITS, Figure, Profile
from result import outcome
from runner import Stage

DEFAULT_BASE = "rtx4090-desktop"


def write_report(
    folder: Path, head: Mapping[str, Any], stages: Sequence[Stage], found: Mapping[str, dict[str, Any]]
) -> None:
    """All three files anew. `found`: by the names of those stages that have ended."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {name: {"outcome": outcome(one), **one} for name, one in found.items()}
    _replace(folder / "report.json", json.dumps({**head, "stages": results}, indent=1) + "\n")
    _replace(folder / "report.md", markdown(head, stages, found))
    _replace(folder / "profile.json", make_profile(found).to_json())


def make_profile(found: Mapping[str, dict[str, Any]]) -> Profile:
    """The figures measured so far; what was not yet is taken from the published profile whose GPU's memory is nearest."""
    measured = {
        name: figure for one in found.values() for name, figure in one["figures"].items() if name in UNITS
    }
    base = profiles.load(DEFAULT_BASE)
    if "gpu_memory" in measured:
        memory = measured["gpu_memory"]["value"]
        known = map(profiles.load, profiles.known())
        base = min(known, key=lambda one: abs(one["gpu_memory"] / memory - 1))
    figures = {}
    for name, unit in UNITS.items():
        if name in measured:
            how = f"make gpu-check: {measured[name]['how']}"
            figures[name] = Figure(measured[name]["value"], unit, "measured", how)
        elif name not in OPTIONAL:
            figures[name] = base.figures[name]
    missing = sorted(name for name in UNITS if name not in measured and name not in OPTIONAL)
    rest = f"; {', '.join(missing)} as published for {base.name}" if missing else ""
    return Profile("gpu-check", f"This machine, measured by make gpu-check{rest}", figures)


def markdown(head: Mapping[str, Any], stages: Sequence[Stage], found: Mapping[str, dict[str, Any]]) -> str:
    lines = ["# GPU check", "", *(f"- {key}: {value}" for key, value in head.items()), ""]
    lines += table([summary(stage, found.get(stage.name)) for stage in stages])
    for stage in stages:
        if stage.name in found:
            lines += ["", *section(stage, found[stage.name])]
    return "\n".join(lines) + "\n"


def summary(stage: Stage, found: Mapping[str, Any] | None) -> dict[str, Any]:
    if found is None:
        return {"stage": stage.name, "outcome": "to come", "seconds": "", "limits kept": ""}
    kept = sum(limit["kept"] for limit in found["limits"])
    limits = f"{kept} of {len(found['limits'])}" if found["limits"] else ""
    return {
        "stage": stage.name,
        "outcome": outcome(found),
        "seconds": found["seconds"],
        "limits kept": limits,
    }


def section(stage: Stage, found: Mapping[str, Any]) -> list[str]:
    lines = [f"## {stage.name}: {stage.title}", "", f"{outcome(found)}, {found['seconds']} s."]
    lines += [found[why] for why in ("stopped", "cannot", "error") if found.get(why)] + found["notes"]
    for rows in (found["limits"], *same_columns(found["rows"])):
        lines += ["", *table(rows)] if rows else []
    return lines


def same_columns(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Neighbours that have the same columns, together."""
    groups: list[list[Mapping[str, Any]]] = []
    for row in rows:
        if groups and list(groups[-1][0]) == list(row):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    def cell(value: Any) -> str:
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        return shown.replace("|", "\\|").replace("\n", " ")

    keys = list(rows[0])
    lines = [keys, ["---"] * len(keys), *([cell(row.get(key, "")) for key in keys] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _replace(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
