"""What a page shows of replays with experts on disk: curves over RAM beside the bounds, and what a token's seconds go to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from dali.hardware import profile as profiles
from dali.hardware.cost import disk_costs
from dali.replay.disk import pools
from dali.replay.report import plots
from dali.replay.report.table import sizes
from dali.replay.sweep import Row
from dali.replay.traces.trace import Trace

BOUND = "Belady", "bound"  # series of the curves: of hit rates, of speeds

Drawn = tuple[str, str]  # what a figure says, its SVG


def figures(trace: Trace, rows: Sequence[Row]) -> Iterator[Drawn]:
    """Two curves for all of a trace's rows that differ in policy and RAM alone, and bars for each RAM. `rows` is not empty."""

    def kind(row: Row) -> tuple[str, str, int, str]:
        return row["profile"], row["shape"], row["batch"], row["cache_slots"]

    for _, group in groupby(sorted(rows, key=kind), key=kind):
        alike = sorted(group, key=lambda row: row["ram_places"])
        yield _curve(trace, alike, "hit_rate", "belady_disk_hit_rate", BOUND[0])
        yield _curve(trace, alike, "tokens_per_second", "bound_tokens_per_second", BOUND[1])
        for _, of_ram in groupby(alike, key=lambda row: row["ram"]):
            yield _seconds(list(of_ram))


def sources(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """(policy, what it is) of each policy of the pool."""
    for name in dict.fromkeys(row["policy"] for row in rows):
        yield name, pools.about(name)


def _curve(trace: Trace, rows: Sequence[Row], value: str, bound: str, named: str) -> Drawn:
    """A line a policy; where all rows have the same RAM, a bar."""
    total = trace.layers * trace.experts
    what = (
        "Active experts found without a read, and, dashed, the offline optimum"
        if value == "hit_rate"
        else "Modelled tokens/s, and, dashed, what no policy exceeds"
    )
    if len({row["ram_places"] for row in rows}) == 1:
        best = sorted(rows, key=lambda row: -(row[value] or 0.0))
        bars = {row["policy"]: row[value] or 0.0 for row in best}
        return f"{what}: {_common(rows[0])}, {_ram(rows[0])}.", plots.rows(bars, rows[0][bound])
    series: dict[str, list[tuple[float, float]]] = {named: []}
    for row in rows:
        share = float(f"{100 * row['ram_places'] / total:.3g}")
        for name, told in ((row["policy"], row[value]), (named, row[bound])):
            points = series.setdefault(name, [])
            if told is not None and (share, told) not in points:
                points.append((share, told))
    drawn = {name: points for name, points in series.items() if points}
    title = f"{what}, against RAM, in % of all {total} experts: {_common(rows[0])}."
    label = "hit rate" if value == "hit_rate" else "tokens/s, modelled"
    return title, plots.lines(drawn, "RAM, %", label, (named,))


def _seconds(rows: Sequence[Row]) -> Drawn:
    """Milliseconds a generated token: the layers' own, those of waiting for the disk, and the disk's beside both."""
    groups = {}
    for row in sorted(rows, key=lambda row: -(row["tokens_per_second"] or 0.0)):
        if not row["tokens_per_second"]:
            continue
        token = 1e3 / row["tokens_per_second"]
        reading = 1e3 * row["bytes_read_per_token"] / disk_costs(profiles.load(row["profile"])).bandwidth
        groups[row["policy"]] = {
            "computing": token * (1 - row["stall_share"]),
            "waiting for reads": token * row["stall_share"],
            "disk reading": reading,
        }
    title = (
        f"Milliseconds a generated token, modelled, by policy, the fastest first: {_common(rows[0])}, {_ram(rows[0])}. The disk "
        "reads beside the other two."
    )
    return title, plots.bars(groups, "ms a token")


def _common(row: Row) -> str:
    above = f"{row['slots']} slots a layer on the accelerator" if row["slots"] else "no accelerator"
    return f"profile {row['profile']}, {sizes(row['shape'])}, batch {row['batch']}, {above}"


def _ram(row: Row) -> str:
    return f"RAM for {row['ram_places']} experts ({row['ram']})"
