"""Plots as inline SVG: lines, bars, lanes, heat-maps. Plain functions from numbers to text; no scripts, no fonts, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

COLOURS = (
    "#0b62a4", "#d1495b", "#2e8b57", "#e08e0b", "#7b4fa3", "#0f9ba8", "#8c564b", "#c2569b",
    "#5a7d2a", "#444444", "#3f88c5", "#b8860b", "#a23e48", "#1b998b", "#6a4c93", "#7f7f7f",
)  # fmt: skip
LANES = {"cpu": "#e08e0b", "link": "#7b4fa3", "gpu": "#0b62a4", "disk": "#5a7d2a"}
LANE_NAMES = {"cpu": "CPU", "link": "link", "gpu": "accelerator", "disk": "disk"}
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 300, 60, 40, 12
LINE = 16  # of a legend


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    dashed: Sequence[str] = (),
) -> str:
    """One line a series; those named in `dashed` are bounds."""
    points = [point for values in series.values() for point in values]
    most = _nice(max((y for _, y in points), default=1.0))
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    across = (WIDTH - LEFT - 10) / ((high - low) or 1.0)

    def place(x: float, y: float) -> str:
        return f"{LEFT + (x - low) * across:.1f},{_y(y, most):.1f}"

    parts = [_axes(most, y_label), _text(LEFT + (WIDTH - LEFT) / 2, HEIGHT - 6, x_label, "middle")]
    parts += [
        _text(LEFT + (x - low) * across, HEIGHT - BOTTOM + 16, f"{x:g}", "middle")
        for x in sorted({x for x, _ in points})
    ]
    for (name, values), colour in zip(series.items(), _colours(len(series)), strict=True):
        dash = ' stroke-dasharray="6 4"' if name in dashed else ""
        path = " ".join(place(x, y) for x, y in values)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts += [
            f'<circle cx="{place(x, y).replace(",", chr(34) + " cy=" + chr(34))}" r="3" fill="{colour}">'
            f"<title>{escape(name)}: {y:.4g} at {x:g}</title></circle>"
            for x, y in values
        ]
    return _svg(parts, list(series))


def bars(groups: Mapping[str, Mapping[str, float]], y_label: str) -> str:
    """Groups side by side, each a bar a series; series missing in a group leave a gap."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    most = _nice(max((value for group in groups.values() for value in group.values()), default=1.0))
    room = (WIDTH - LEFT - 10) / max(len(groups), 1)
    width = 0.85 * room / max(len(names), 1)
    parts = [_axes(most, y_label)]
    for index, (group, values) in enumerate(groups.items()):
        start = LEFT + index * room + 0.075 * room
        parts.append(_text(LEFT + (index + 0.5) * room, HEIGHT - BOTTOM + 16, group, "middle"))
        for place, (name, colour) in enumerate(zip(names, _colours(len(names)), strict=True)):
            if name in values:
                top = _y(values[name], most)
                told = f"{escape(name)}, {escape(group)}: {values[name]:.4g}"
                parts.append(
                    f'<rect x="{start + place * width:.1f}" y="{top:.1f}" width="{width:.1f}" '
                    f'height="{HEIGHT - BOTTOM - top:.1f}" fill="{colour}"><title>{told}</title></rect>'
                )
    return _svg(parts, names)


def rows(values: Mapping[str, float], bound: float | None = None) -> str:
    """A bar a row, its name before it and its value behind: for more series than there are colours to tell apart. `bound`: what
    no bar can exceed, a dashed line."""
    most = max([*values.values(), bound or 0.0], default=0.0) or 1.0
    left, tall = 150, 18
    parts = []
    for index, (name, value) in enumerate(values.items()):
        y, wide = index * tall, value / most * (WIDTH - left - 70)
        told = f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
        parts.append(_text(left - 6, y + 12, name, "end"))
        parts.append(f'<rect x="{left}" y="{y}" width="{wide:.1f}" height="{tall - 3}" fill="{COLOURS[0]}"/>')
        parts.append(_text(left + wide + 6, y + 12, told))
    height = len(values) * tall
    if bound is not None:
        x = left + bound / most * (WIDTH - left - 70)
        told = f"{bound:,.0f}" if bound >= 1000 else f"{bound:.4g}"
        parts.append(
            f'<line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{height}" stroke="{COLOURS[1]}" stroke-width="2" '
            'stroke-dasharray="6 4"/>'
        )
        parts.append(_text(x, height + 14, f"bound {told}", "end"))
        height += 20
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def lanes(spans: Sequence[tuple[str, str, float, float]], seconds_label: str) -> str:
    """(lane, what, start, end) in seconds: one row a lane; experts in the lane's colour, all else grey."""
    used = [lane for lane in LANES if any(span[0] == lane for span in spans)]
    end = max((span[3] for span in spans), default=0.0) or 1.0
    row, left = 40, 90
    across = (WIDTH - left - 10) / end
    parts = []
    for index, lane in enumerate(used):
        parts.append(_text(left - 8, index * row + row / 2 + 4, LANE_NAMES[lane], "end"))
        for name, what, start, stop in spans:
            if name == lane:
                x, wide = left + start * across, max((stop - start) * across, 1.0)
                colour = LANES[lane] if what.isdigit() else "#999"
                edge = "#fff" if wide > 6 else colour
                parts.append(
                    f'<rect x="{x:.1f}" y="{index * row + 4}" width="{wide:.1f}" height="{row - 8}" stroke="{edge}" '
                    f'fill="{colour}"><title>{escape(what)}: {1e6 * start:.1f} to {1e6 * stop:.1f} us</title></rect>'
                )
                if wide > 8 * len(what):
                    parts.append(_text(x + wide / 2, index * row + row / 2 + 4, what, "middle", "#fff"))
    bottom = len(used) * row
    parts += [
        _text(
            left + tick / 4 * end * across,
            bottom + 16,
            f"{1e6 * end * tick / 4:.0f}",
            "end" if tick else "start",
        )
        for tick in range(5)
    ]
    parts.append(_text(left + (WIDTH - left) / 2, bottom + 34, seconds_label, "middle"))
    return f'<svg viewBox="0 0 {WIDTH} {bottom + 42}" role="img">{"".join(parts)}</svg>'


def heat_map(rows: Mapping[str, Sequence[float]], x_label: str, most: float) -> str:
    """One row of cells a name, white at 0 and dark at `most`, as the scale beneath says; each cell tells its value."""
    columns = max(len(values) for values in rows.values())
    left, tall = 150, max(min(18, 400 // max(len(rows), 1)), 6)
    wide = (WIDTH - left - 10) / columns
    parts = []
    for index, (name, values) in enumerate(rows.items()):
        if tall >= 10:
            parts.append(_text(left - 6, index * tall + tall / 2 + 4, name, "end"))
        for column, value in enumerate(values):
            shade = min(value / most, 1.0) if most else 0.0
            parts.append(
                f'<rect x="{left + column * wide:.1f}" y="{index * tall}" width="{wide + 0.3:.1f}" height="{tall - 1}" '
                f'class="heat" fill="{_shade(shade)}">'
                f"<title>{escape(name)}, {escape(x_label)} {column}: {value:.4g}</title></rect>"
            )
    bottom = len(rows) * tall
    parts.append(_text(left, bottom + 18, f"{x_label}, 0 to {columns - 1}"))
    parts += _scale(bottom + 8, most)
    return f'<svg viewBox="0 0 {WIDTH} {bottom + 26}" role="img">{"".join(parts)}</svg>'


def _scale(y: float, most: float) -> list[str]:
    """The shades from 0 to `most` at the right, numbered."""
    steps, wide = 20, 6
    left = WIDTH - 60 - steps * wide
    parts = [_text(left - 6, y + 10, "0", "end"), _text(left + steps * wide + 6, y + 10, f"{most:.3g}")]
    for step in range(steps):
        shade = _shade(step / (steps - 1))
        parts.append(
            f'<rect x="{left + step * wide}" y="{y}" width="{wide}" height="12" class="heat" fill="{shade}"/>'
        )
    return parts


def _svg(parts: Sequence[str], names: Sequence[str]) -> str:
    """The plot with its legend beneath, four names a line."""
    legend = []
    for index, (name, colour) in enumerate(zip(names, _colours(len(names)), strict=True)):
        x, y = LEFT + index % 4 * 145, HEIGHT + 8 + index // 4 * LINE
        legend.append(f'<rect x="{x}" y="{y}" width="10" height="10" fill="{colour}"/>')
        legend.append(_text(x + 14, y + 9, name))
    height = HEIGHT + 12 + (len(names) + 3) // 4 * LINE
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join([*parts, *legend])}</svg>'


def _axes(most: float, label: str) -> str:
    parts = []
    for tick in range(5):
        value = most * tick / 4
        y = _y(value, most)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - 10}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{value:g}", "end"))
    middle = TOP + (HEIGHT - BOTTOM - TOP) / 2
    parts.append(
        f'<text x="14" y="{middle}" transform="rotate(-90 14 {middle})" text-anchor="middle">{escape(label)}</text>'
    )
    return "".join(parts)


def _y(value: float, most: float) -> float:
    return HEIGHT - BOTTOM - value / most * (HEIGHT - BOTTOM - TOP)


def _nice(value: float) -> float:
    """The least round number that is no less."""
    power = 1.0
    while power > value > 0:
        power /= 10
    while power * 10 < value:
        power *= 10
    return next(
        (power * step for step in (1, 1.6, 2, 2.4, 3, 4, 5, 6, 8) if power * step >= value), power * 10
    )


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _shade(share: float) -> str:
    """White to a dark blue."""
    return "#{:02x}{:02x}{:02x}".format(*(round(255 + (dark - 255) * share) for dark in (8, 48, 107)))


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
