"""What was measured, for people: a table and bars for terminals, and a page with plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from dali.hardware.profile import ACCELERATOR, Profile, Table
from dali.hardware.rates import alone
from dali.replay.report import plots
from dali.units import size

BAR = 30  # columns of the longest
TITLES = {
    "memory_bandwidth": "memory, read by all threads",
    "cpu_bandwidth": "experts on the CPU, weights",
    "cpu_rate": "experts on the CPU, arithmetic",
    "attention_bandwidth": "attention, decoding",
    "attention_score": "attention, decoding, a score",
    "attention_rate": "attention, prompts",
    "attention_query": "attention, prompts, a query's value",
    "cpu_call": "a call of a kernel",
    "experts_call": "a call of experts",
    "layer_overhead": "a layer beside its weights",
    "step_overhead": "a step outside of kernels",
    "sequence_overhead": "a further sequence there",
    "prompt_layer": "a layer of a prompt, however short",
    "disk_bandwidth": "disk",
    "disk_latency": "disk, a page",
    "check_bandwidth": "checksums of what was read",
    "disk_queue_depth": "disk, reads at once",
    "plain_bandwidth": "disk, through the page cache",
    "plain_queue_depth": "disk, through it, reads at once",
    "gpu_memory": "GPU's memory",
    "gpu_bandwidth": "experts on the GPU, weights",
    "gpu_rate": "experts on the GPU, arithmetic",
    "link_bandwidth": "link",
    "link_contended": "link, beside the CPU's experts",
    "link_latency": "link, a copy's own",
    "launch": "a launch",
    "sync": "a wait for the GPU",
}
SCALES: Mapping[str, tuple[tuple[float, str], ...]] = {
    "B/s": ((1e9, "GB/s"), (1e6, "MB/s")),
    "FLOP/s": ((1e12, "TFLOP/s"), (1e9, "GFLOP/s")),
    "s": ((1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")),
    "reads": ((1, "reads"),),
}


def text(profile: Profile) -> str:
    """Figures with the spread of their readings, experts by tokens, and bars."""
    parts = [f"{profile.description}\n", *_figures(profile), "", *_experts(profile), "", *_bars(profile)]
    if profile.error:
        parts += [
            "",
            f"Experts of shapes that were not measured are predicted within {100 * profile.error:.0f} % (median).",
        ]
    if not any(name in profile.figures for name in ACCELERATOR):
        parts.append("There is no GPU here that dali can use; with one, link and kernels are measured too.")
    return "\n".join(parts)


def told(value: float, unit: str) -> str:
    """A figure as people read it: 43.1 GB/s."""
    if unit == "B":
        return size(int(value))
    scale, name = next(((scale, name) for scale, name in SCALES[unit] if value >= scale), SCALES[unit][-1])
    return f"{value / scale:.3g} {name}" if unit != "reads" else f"{value:.0f}"


def _figures(profile: Profile) -> Iterator[str]:
    for name, title in TITLES.items():
        if name in profile.figures:
            figure = profile.figures[name]
            spread = f"± {100 * figure.spread:.0f} %" if figure.spread else ""
            yield f"{title:<32} {told(figure.effective, figure.unit):>14}  {spread}".rstrip()


def _experts(profile: Profile) -> Iterator[str]:
    """Microseconds of one expert by tokens, a line a table."""
    for device in ("cpu", "gpu"):
        tables = [table for table in profile.tables if (table.device, table.kind) == (device, "experts")]
        if not tables:
            continue
        counts = sorted({tokens for table in tables for tokens, _ in table.points})
        where = "CPU" if device == "cpu" else "GPU"
        yield f"{f'us of an expert on the {where} by tokens':<40}" + "".join(
            f"{count:>8}" for count in counts
        )
        for table in tables:
            seconds = dict(table.points)
            cells = (f"{1e6 * seconds[count]:>8.0f}" if count in seconds else " " * 8 for count in counts)
            yield f"{_named(table):<40}" + "".join(cells).rstrip()


def _named(table: Table) -> str:
    beside = f", beside {table.beside}" if table.beside else ""
    return f"{table.format} {table.hidden} x {table.intermediate}{beside}"


def _bars(profile: Profile) -> Iterator[str]:
    for title, values in _groups(profile).items():
        yield title
        yield from _drawn(values)
        yield ""


def _groups(profile: Profile) -> dict[str, dict[str, float]]:
    """GB/s, by what was read."""
    found = {
        f"GB/s of {curve.name}, by {curve.x}": {f"{x:.0f}": y / 1e9 for x, y in curve.points}
        for curve in profile.curves
        if curve.unit == "B/s"
    }
    tables = alone(profile.tables, "cpu", "experts")
    weights = {_named(table): table.bytes / table.points[0][1] / 1e9 for table in tables}
    return found | {"GB/s of experts' weights, a token each": weights}


def _drawn(values: Mapping[str, float]) -> Iterator[str]:
    most, width = max(values.values()), max(map(len, values))
    for name, value in values.items():
        yield f"  {name:>{width}}  {'█' * max(round(BAR * value / most), 1):<{BAR}}  {value:.3g}"


def page(profile: Profile, made: str) -> str:
    """All of it as one HTML page that stands alone; `made`: how and when, a sentence."""
    tables = alone(profile.tables, "cpu", "experts")
    first = [
        table
        for table in tables
        if (table.hidden, table.intermediate) == (tables[0].hidden, tables[0].intermediate)
    ]
    figures = [
        (title, plots.bars({name: {curve_unit(title): value} for name, value in values.items()}, "GB/s"))
        for title, values in _groups(profile).items()
        if len(values) <= 8
    ]
    figures.append(
        (
            "GB/s of experts' weights, a token each",
            plots.rows(_groups(profile)["GB/s of experts' weights, a token each"]),
        )
    )
    series = {_named(table): rates_by_tokens(table) for table in first}
    figures.append(
        ("GFLOP/s of experts on the CPU, by tokens each", plots.lines(series, "tokens", "GFLOP/s"))
    )
    drawn = "".join(
        f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>" for title, svg in figures
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in profile.notes)
    return PAGE.format(
        about=escape(profile.description),
        made=escape(made),
        table=_html_rows(profile),
        drawn=drawn,
        notes=notes,
    )


def curve_unit(title: str) -> str:
    """What a bar's colour stands for: the curve's name."""
    return title.removeprefix("GB/s of ").partition(", by ")[0]


def rates_by_tokens(table: Table) -> Sequence[tuple[float, float]]:
    """(tokens, GFLOP/s)."""
    return [(tokens, 2e-9 * table.parameters * tokens / seconds) for tokens, seconds in table.points]


def _html_rows(profile: Profile) -> str:
    rows = []
    for name, title in TITLES.items():
        if name in profile.figures:
            figure = profile.figures[name]
            cells = (
                title,
                told(figure.effective, figure.unit),
                f"± {100 * figure.spread:.0f} %",
                figure.source,
            )
            rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return "".join(rows)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>dali: this machine</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222; }}
table {{ border-collapse: collapse; }} td {{ padding: 0.2em 0.8em; border-bottom: 1px solid #ddd; }}
td:not(:last-child) {{ white-space: nowrap; }}
figure {{ margin: 2em 0; max-width: 40em; }} svg {{ font: 11px system-ui, sans-serif; width: 100%; }}
</style></head><body>
<h1>{about}</h1><p>{made}</p><ul>{notes}</ul><table>{table}</table>{drawn}
</body></html>
"""
