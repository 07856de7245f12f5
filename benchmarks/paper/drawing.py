"""The figures as SVG files under docs/figures, a panel a trace and part; from the rows of results/paper_figures.json alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from beside import Values, part, tables
from dali.replay.report import plots

FOLDER = Path(__file__).parents[2] / "docs" / "figures"
WIDE, TITLE, GAP = 640, 26, 20
A_SEQUENCE = "tokens/s a sequence, modelled"
LABELS = {"12": A_SEQUENCE, "13": A_SEQUENCE, "19": A_SEQUENCE}
PARTS = {
    "14": {"a": A_SEQUENCE, "b": "share of the optimum"},
    "16": {"a": "speed over greedy alone, modelled", "b": "share of the busiest found"},
    "17": {"a": A_SEQUENCE, "b": "hit rate"},
    "18": {"a": A_SEQUENCE, "b": A_SEQUENCE, "c": "hit rate", "d": ""},
}
COUNTED = {"a": "experts prefetched", "b": "experts resident a layer"}  # in figure 18


def draw(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all files anew."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in sheets(rows).items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def sheets(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """File names and what is in them."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for (figure, trace, shape), values in tables(rows).items():
        for name, svg in parts(figure, values):
            title = f"{name and f'({name}) '}{trace}'s routing, {shape}'s sizes"
            panels.setdefault(figure, []).append((title, svg))
    return {f"paper_{figure}.svg": sheet(drawn) for figure, drawn in panels.items()}


def parts(figure: str, values: Values) -> Iterator[tuple[str, str]]:
    """A figure's parts, ("", plot) for one that has none."""
    if figure in LABELS:
        yield "", plots.bars(values, LABELS[figure])
        return
    for name, label in PARTS[figure].items():
        own = part(values, name)
        if not own:
            continue
        if figure == "18" and name in COUNTED:
            speeds = {"dali-paper": [(float(count), value) for count, value in own[name].items()]}
            yield name, plots.lines(speeds, COUNTED[name], label)
        elif name == "d":
            layers = {layer: [group[layer] for group in own.values()] for layer in next(iter(own.values()))}
            yield name, plots.heat_map(layers, "group of 8 tokens", 1.0)
        else:
            yield name, plots.bars({_short(group): found for group, found in own.items()}, label)


def sheet(panels: Sequence[tuple[str, str]]) -> str:
    """Panels two a row on one white sheet."""
    placed, y, tall = [], 0.0, 0.0
    for index, (title, svg) in enumerate(panels):
        if index % 2 == 0:
            y, tall = y + tall, 0.0
        height = float(re.match(rf'<svg viewBox="0 0 {WIDE} ([0-9.]+)"', svg)[1])  # type: ignore[index]
        x = GAP + index % 2 * (WIDE + GAP)
        placed.append(f'<text x="{x}" y="{y + 18:.0f}" class="title">{escape(title)}</text>')
        placed.append(
            svg.replace("<svg ", f'<svg x="{x}" y="{y + TITLE:.0f}" width="{WIDE}" height="{height:.0f}" ', 1)
        )
        tall = max(tall, TITLE + height + GAP)
    wide = GAP + min(len(panels), 2) * (WIDE + GAP)
    style = "text { font: 11px sans-serif } .title { font-size: 14px }"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {y + tall:.0f}"><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(placed)}</svg>\n'
    )


def _short(group: str) -> str:
    return group.partition(", ")[2] or group
