"""An examination, as text and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dali.doctor.examine import Examination, Quant, best_of
from dali.doctor.machine import Finding
from dali.doctor.speed import PROMPT, Interval
from dali.doctor.verdict import of
from dali.doctor.ways import Way
from dali.units import size


def text(found: Examination, flag: Callable[[str], str], quants: Sequence[Quant] = ()) -> str:
    """For people. flag: what the command line calls an option; quants: of a repository of GGUF files."""
    lines = [f"{found.name}: {found.verdict.word}. {found.verdict.why}"]
    if found.verdict.fix:
        lines.append(found.verdict.fix)
    sizes = found.sizes
    if sizes is not None:
        lines += [
            "",
            f"{sizes.family}, {_count(sizes.parameters)} weights in {size(sizes.file_bytes)} of files; "
            f"{sizes.layers} layers, {sizes.moe_layers} of them with {sizes.experts} experts, {sizes.top_k} a token.",
        ]
    for way in found.ways[:1]:
        lines += ["", *_table([("memory", "", ""), *_memory(way)])]
        lines += ["", *_table([("the plan", "", "by"), *found.choices])]
    if found.ways:
        lines += ["", *_table([_HEAD, *(_speed(way, flag) for way in found.ways)])]
        lines.append(f"Modelled, after 2,048 tokens at most and of a prompt of {PROMPT}, by {found.basis}.")
    lines += [*found.notes, *found.more]
    if quants:
        lines += [
            "",
            *_table([("quantization", "size", "verdict", "decoding, tokens/s"), *map(_quant, quants)]),
        ]
        best = best_of(quants)
        lines.append(
            "None of them fits."
            if best is None
            else f"{best.name} fits best: the largest of the best verdict."
        )
    return "\n".join(lines)


_HEAD = ("how", "flags", "decoding, tokens/s", "a prompt, tokens/s", "loading again, s")


def _count(weights: int) -> str:
    return f"{weights / 1e9:.1f} billion" if weights >= 1e9 else f"{weights / 1e6:.0f} million"


def _memory(way: Way) -> list[tuple[str, str, str]]:
    plan = way.plan
    held = size(plan.experts)
    if plan.slots:  # each as large as the largest expert
        held = f"{size(plan.slots * plan.slot)} of {size(plan.all_slots * plan.slot)}"
    rows = [("experts", held, plan.format), ("everything else", size(plan.dense), "")]
    if plan.states:
        rows.append(("keys and values", size(plan.states), f"{plan.context} tokens"))
    rows.append(("in all", size(plan.memory), f"of {size(plan.allowed)}"))
    if plan.device is not None:
        there = f"on {plan.device.name}, "
        rows.append(
            (f"{there}experts", size(plan.resident * plan.slot), f"{plan.resident} of {plan.all_slots}")
        )
        rows.append((f"{there}keys and values", size(plan.kept), plan.contexts))
    if plan.store:
        rows.append(("on dali's disk", size(plan.store), "packed once"))
    return rows


def _speed(way: Way, flag: Callable[[str], str]) -> tuple[str, ...]:
    prediction = way.prediction
    load = "not known" if prediction.load is None else _interval(prediction.load)
    asked = "taken" if way.taken else _asked(way, flag) or "-"
    return way.policy or way.name, asked, _interval(prediction.decode), _interval(prediction.prompt), load


def _asked(way: Way, flag: Callable[[str], str]) -> str:
    """The flags that ask for a way beside those given: what is added, and what is left out."""
    given = [f"{flag(name)} {value}" for name, value in way.added.items()]
    return ", ".join([" ".join(given)] * bool(given) + [f"no {flag(name)}" for name in way.dropped])


def _interval(interval: Interval) -> str:
    return f"{of(interval.expected)} ({of(interval.low)} to {of(interval.high)})"


def _table(rows: Sequence[Iterable[str]]) -> list[str]:
    cells = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _quant(row: Quant) -> tuple[str, str, str, str]:
    return row.name, size(row.nbytes), row.verdict, of(row.speed) if row.speed else "-"


def findings(rows: Sequence[Finding]) -> str:
    """What a machine has, what is wrong with it, and what mends that."""
    lines = _table([(row.what, row.value) for row in rows])
    for row in rows:
        lines += ["", row.problem, row.fix] if row.problem else []
    if not any(row.problem for row in rows):
        lines += ["", "Nothing is wrong. `dali doctor MODEL` says what a model would do here."]
    return "\n".join(lines)


def as_json(found: Examination, flag: Callable[[str], str], quants: Sequence[Quant] = ()) -> dict[str, Any]:
    """For machines: bytes, tokens a second, seconds."""
    sizes = found.sizes
    return {
        "model": found.name,
        "verdict": found.verdict.word,
        "why": found.verdict.why,
        "fix": found.verdict.fix,
        "fits": found.verdict.fits,
        "family": None if sizes is None else sizes.family,
        "sizes": None
        if sizes is None
        else {
            name: getattr(sizes, name)
            for name in (
                "parameters",
                "layers",
                "moe_layers",
                "experts",
                "top_k",
                "hidden",
                "intermediate",
                "file_bytes",
            )
        },
        "plan": [choice._asdict() for choice in found.choices],
        "ways": [_way(way, flag) for way in found.ways],
        "notes": list(found.notes),
        "more": list(found.more),
        "basis": found.basis,
        "quants": [row._asdict() for row in quants],
    }


def _way(way: Way, flag: Callable[[str], str]) -> dict[str, Any]:
    plan, prediction = way.plan, way.prediction
    memory = {
        name: getattr(plan, name)
        for name in (
            "experts",
            "dense",
            "states",
            "memory",
            "allowed",
            "context",
            "slots",
            "all_slots",
            "resident",
            "vram",
            "kept",
            "sequences",
            "store",
        )
    }
    speeds = {
        name: None if (interval := getattr(prediction, name)) is None else interval._asdict()
        for name in ("decode", "prompt", "load")
    }
    told = {"name": way.name, "policy": way.policy, "taken": way.taken, "flags": _asked(way, flag)}
    return {**told, "where": plan.where, "format": plan.format, **memory, **speeds}
