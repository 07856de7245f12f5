"""A sweep as one self-contained HTML page: plots of each trace, then the table. It depends on the sweep, and what it is told of
how it was made, alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from itertools import groupby

import numpy as np

from dali import systems
from dali.errors import UsageError
from dali.replay import eviction
from dali.replay.cells import Cell, read_trace
from dali.replay.report import on_disk, plots
from dali.replay.report.routing import usage
from dali.replay.report.table import GROUP, HEADINGS, columns, notes, ranked, shown, sizes
from dali.replay.steps import forwards
from dali.replay.sweep import Outcome, Row
from dali.replay.traces.locality import segment_cache_hit_rate, segment_routing_performance
from dali.replay.traces.trace import Trace

SHARES = (10, 25, 50, 75, 90)  # of a layer's experts, in the curves
CURVE_TOKENS = 4000  # of a trace, for curves and metrics
WINDOW = 16  # tokens, of SRP and SCH
BOUNDS = ("belady", "belady-bypass", "random")

Pair = tuple[Cell, Outcome]


def page(outcomes: Sequence[Outcome], cells: Sequence[Cell], made: str = "") -> str:
    """The report on a sweep's cells; `made`: how and when, a sentence."""
    rows = [outcome.row for outcome in outcomes]
    names = _columns(rows)
    body = "".join(
        _line("td", [shown(row, name) for name in names]) for group in ranked(rows) for row in group
    )
    models = dict.fromkeys(str(read_trace(one.trace).meta["model"]) for one in cells)
    return _PAGE.format(
        models=escape(", ".join(models)),
        made=f"<p>{escape(made)}</p>" if made else "",
        traces="".join(
            _trace_section(read_trace(path), list(pairs))
            for path, pairs in groupby(zip(cells, outcomes, strict=True), key=lambda pair: pair[0].trace)
        ),
        head=_line("th", list(names.values())),
        body=body,
        notes="".join(f"<li>{escape(note)}</li>" for note in notes(rows)),
        systems=_sources(rows),
    )


def _columns(rows: Sequence[Row]) -> dict[str, str]:
    """Those of the table, with what its groups' headings and last lines say."""
    own = {name: HEADINGS[name] for name in columns(rows)}
    told = {
        name: name.replace("cache_slots", "slots") for name in GROUP if rows and rows[0].get(name) is not None
    }
    last = {
        "bound_tokens_per_second": "bound",
        "belady_bypass_hit_rate": "belady-bypass",
        "random_hit_rate": "random",
        "belady_disk_hit_rate": "belady",
    }
    bounds = {name: title for name, title in last.items() if any(row.get(name) is not None for row in rows)}
    return {**told, **own, **bounds}


def _trace_section(trace: Trace, pairs: Sequence[Pair]) -> str:
    first, rows = pairs[0][0], [outcome.row for _, outcome in pairs]
    if first.ram is not None:
        figures = [_figure(*drawn) for drawn in on_disk.figures(trace, rows)]
    else:
        figures = [_curves(trace, first), *_speeds(rows), *_lanes(first, pairs)]
    figures += [_layers(first, pairs), usage(trace)]
    sequences = "1 sequence" if trace.sequences == 1 else f"{trace.sequences} sequences"
    about = (
        f"{trace.meta['model']}: {sequences}, {trace.tokens} tokens, {trace.layers} MoE layers, "
        f"top {trace.top_k} of {trace.experts}. {_locality(trace)}"
    )
    return f"<h2>{escape(trace.name)}</h2><p>{escape(about)}</p>{''.join(figures)}"


def _curves(trace: Trace, first: Cell) -> str:
    steps = forwards(trace, first.batch, CURVE_TOKENS)
    series = {
        policy: [
            (
                share,
                eviction.replay(trace, steps, round(share * trace.experts / 100), policy, first.seed).rate,
            )
            for share in SHARES
        ]
        for policy in eviction.POLICIES
    }
    title = (
        f"Hit rate of a cache alone against slots, in % of a layer's {trace.experts} experts: batch {first.batch}, at most "
        f"{CURVE_TOKENS} generated tokens. Dashed: the offline optima above, random eviction below."
    )
    return _figure(title, plots.lines(series, "slots, %", "hit rate", BOUNDS))


def _speeds(rows: Sequence[Row]) -> Iterator[str]:
    def kind(row: Row) -> tuple[str, str, str, int]:
        return row["profile"], row["shape"], row["cache_slots"], row["batch"]

    timed = [row for row in rows if row["tokens_per_second"] is not None]
    for (profile, shape, slots, batch), group in groupby(sorted(timed, key=kind), key=kind):
        title = f"Modelled tokens/s by policy, and the bound: profile {profile}, {sizes(shape)}, {slots} slots, batch {batch}."
        best = sorted(group, key=lambda row: -row["tokens_per_second"])
        speeds = {row["policy"]: row["tokens_per_second"] for row in best}
        yield _figure(title, plots.rows(speeds, best[0]["bound_tokens_per_second"]))


def _lanes(first: Cell, pairs: Sequence[Pair]) -> Iterator[str]:
    """A step of the first policy in its last cell, the one of the largest batch."""
    drawn = [outcome for one, outcome in pairs if outcome.lanes and one.policy == first.policy]
    if drawn:
        row = drawn[-1].row
        title = (
            f"Lanes of a step's first layers, half-way through: {row['policy']}, profile {row['profile']}, "
            f"{sizes(row['shape'])}, batch {row['batch']}, {row['cache_slots']} slots. Numbers are experts; copies ahead of "
            "their layer are not drawn."
        )
        yield _figure(title, plots.lanes(drawn[-1].lanes, "microseconds, modelled"))


def _layers(first: Cell, pairs: Sequence[Pair]) -> str:
    by_policy: Mapping[str, Sequence[float]] = {
        one.policy: outcome.layer_rates
        for one, outcome in pairs
        if replace(one, policy=first.policy) == first
    }
    best = dict(sorted(by_policy.items(), key=lambda item: -sum(item[1])))
    room = f"{first.cache_slots} slots" if first.ram is None else f"RAM {first.ram}"
    title = f"Hit rate by layer: batch {first.batch}, {room}."
    return _figure(title, plots.heat_map(best, "layer", 1.0))


def _locality(trace: Trace) -> str:
    """SRP and SCH of the trace's first sequences."""
    whole = min(int(np.searchsorted(trace.seq_ptr[1:], CURVE_TOKENS)) + 1, trace.sequences)
    ends = trace.seq_ptr[: whole + 1]
    part = Trace(trace.name, trace.meta, trace.ids[: ends[-1]], ends, trace.phase[: ends[-1]])
    srp = segment_routing_performance(part, WINDOW)
    sch = segment_cache_hit_rate(part, WINDOW, 2 * trace.top_k)
    return (
        f"Locality over windows of {WINDOW} tokens ({part.tokens} tokens): SRP {srp.srp:.3f} with sets of {srp.size:.2f} x "
        f"top-k; SCH {sch:.3f} with {2 * trace.top_k} slots a layer. SRP (segment routing best performance): the F1 with which "
        "one set of experts a window foretells all its tokens' routing; 1 where they use the same ones. SCH (segment cache best "
        "hit rate): the hit rate of a cache that sees a window ahead."
    )


def _sources(rows: Sequence[Row]) -> str:
    """Where each system comes from, and what of it is left out."""
    if rows and rows[0].get("ram") is not None:
        items = [f"<li><b>{escape(name)}</b>: {escape(about)}</li>" for name, about in on_disk.sources(rows)]
        return f"<h2>Policies of the pool in RAM</h2><ul>{''.join(items)}</ul>"
    items = []
    for name in dict.fromkeys(row["policy"] for row in rows):
        try:
            system = systems.get(name)
        except UsageError:  # a cache alone
            continue
        lossy = f" Left out, as they change the output: {', '.join(system.lossy)}." if system.lossy else ""
        about = escape(f"{system.title}. {system.source}.{lossy}")
        items.append(f"<li><b>{escape(name)}</b>: {about}</li>")
    return f"<h2>Policies</h2><ul>{''.join(items)}</ul>" if items else ""


def _figure(title: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"


def _line(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(one)}</{tag}>' for one in cells)}</tr>"


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>dali simulate: {models}</title><style>
:root {{ color-scheme: light dark; --ink: #222; --paper: #fff; --line: #ddd }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #ddd; --paper: #16181c; --line: #3a3f47 }}
  svg .heat {{ filter: invert(1) hue-rotate(180deg) }}
}}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1400px; margin: 2em auto; padding: 0 1em; color: var(--ink);
  background: var(--paper) }}
figure {{ display: inline-block; width: min(660px, 100%); margin: 0 1em 1.5em 0; vertical-align: top }}
figcaption {{ margin-bottom: .4em }}
svg {{ width: 100% }} svg text {{ font: 11px system-ui, sans-serif }}
svg text:not([fill="#fff"]) {{ fill: var(--ink) }} svg line[stroke="#ddd"] {{ stroke: var(--line) }}
.wide {{ overflow-x: auto }} table {{ border-collapse: collapse; font-size: 13px }}
td, th {{ padding: 2px 10px; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap }}
</style></head><body>
<h1>dali simulate: {models}</h1>{made}
<p>Recorded routing replayed event by event through the policies of live runs. Nothing was computed: all times are modelled.</p>
{traces}<h2>All cells</h2><div class="wide"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>
<details><summary>What the columns mean</summary><ul>{notes}</ul></details>{systems}
</body></html>
"""
