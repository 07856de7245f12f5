"""What happened to the experts, as a table that fits a screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from dali.policies.reasons import AHEAD, COPIED, CPU, RESIDENT
from dali.replay.explain.slices import PLACES, LayerStep

LAYERS, WORST, REASONS = 24, 5, 8  # lines, at most
LANES = {"cpu": "CPU", "gpu": "accelerator", "link": "link", "disk": "disk"}
HEAD = ("layer", "experts", *PLACES.values(), "ms", *(f"{lane} ms" for lane in LANES.values()))
MEANINGS = {
    CPU: "on CPU: computed there",
    RESIDENT: "resident: on the accelerator anyhow",
    AHEAD: "ahead: copied there before its layer",
    COPIED: "copied: when it was wanted",
    "read": "read: from disk, as RAM did not have it",
}
WHY = "Why, and how much longer a layer would take, as modelled, with one such expert in the other place (a minus: shorter)"


def summary(steps: Sequence[LayerStep], begun: int, times: str) -> str:
    """Of layers' steps, the last of a run of `begun` steps: a table by layer, why experts were where they were, and the longest
    steps. `times`: "modelled" or "measured"."""
    if not steps:
        return "No layer with experts ran, so there is nothing to explain."
    steps_seen = len({step.step for step in steps})
    said = f"{steps_seen:,} steps" if steps_seen == begun else f"the last {steps_seen:,} of {begun:,} steps"
    parts = [f"Experts of {said}; times are {times}, and lanes run side by side.", _layers(steps)]
    kinds = [place for place in PLACES if any(step.counts[place] for step in steps)]
    if kinds != [CPU]:
        parts.append(f"({'; '.join(MEANINGS[place] for place in kinds)})")
    if any(step.reasons for step in steps):
        parts += ["", WHY, _reasons(steps)]
    return "\n".join([*parts, "", "Longest layers", *_worst(steps)])


def table(rows: Iterable[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Columns beside one another, set right but for those that are `left`."""
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def longest(seconds: dict[int, float], most: int) -> list[int]:
    """The layers that took longest, in their own order."""
    return sorted(sorted(seconds, key=lambda layer: -seconds[layer])[:most])


def _layers(steps: Sequence[LayerStep]) -> str:
    seconds: dict[int, float] = {}
    for step in steps:
        seconds[step.layer] = seconds.get(step.layer, 0.0) + step.seconds
    shown = longest(seconds, LAYERS)
    rows = [HEAD, *(_row(str(layer), [one for one in steps if one.layer == layer]) for layer in shown)]
    if rest := [step for step in steps if step.layer not in shown]:
        rows.append(_row(f"{len(seconds) - len(shown)} more", rest))
    rows.append(_row("all", steps))
    # Columns of which the last row says that there is nothing in them.
    kept = [at for at, cell in enumerate(rows[-1]) if at < 2 or cell.strip("0.")]
    return table([[row[at] for at in kept] for row in rows])


def _row(name: str, steps: Sequence[LayerStep]) -> tuple[str, ...]:
    counts = [sum(step.counts[place] for step in steps) for place in PLACES]
    lanes = [sum(step.lane_seconds(lane) for step in steps) for lane in LANES]
    numbers = [sum(counts[:4]), *counts]
    times = [sum(step.seconds for step in steps), *lanes]
    return (name, *(f"{number:,}" for number in numbers), *(f"{1e3 * seconds:,.3f}" for seconds in times))


def _reasons(steps: Sequence[LayerStep]) -> str:
    times: Counter[tuple[str, str]] = Counter()
    longer: dict[tuple[str, str], list[float]] = {}
    for step in steps:
        for reason in step.reasons:
            key = "CPU" if reason.place == CPU else "accelerator", reason.why
            times[key] += 1
            if reason.otherwise is not None:
                longer.setdefault(key, []).append(reason.otherwise - step.planned)
    rows = [("where", "experts", "elsewhere", "why")]
    for key, many in times.most_common(REASONS):
        there = longer.get(key)
        mean = f"{1e6 * sum(there) / len(there):+,.1f} us" if there else "-"
        rows.append((key[0], f"{many:,}", mean, key[1]))
    return table(rows, left=(0, 3))


def _worst(steps: Sequence[LayerStep]) -> list[str]:
    told = []
    for step in sorted(steps, key=lambda one: -one.seconds)[:WORST]:
        lanes = {name: step.lane_seconds(lane, own=True) for lane, name in LANES.items()}
        busiest = max(lanes, key=lambda name: lanes[name])
        many = ", ".join(f"{number} {PLACES[place]}" for place, number in step.counts.items() if number)
        tokens = "1 token" if step.tokens == 1 else f"{step.tokens:,} tokens"
        told.append(
            f"  step {step.step}, layer {step.layer}, {tokens}: {1e6 * step.seconds:,.0f} us, of which the {busiest} was busy "
            f"{1e6 * lanes[busiest]:,.0f}; {many}"
        )
    return told
