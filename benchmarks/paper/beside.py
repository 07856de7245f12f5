"""The figures beside the paper's: what of each compares, and what the paper says of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

Values = Mapping[str, Mapping[str, float]]  # group -> series -> value
Line = tuple[str, float, str]  # what, here, in the paper

OVER = {  # DALI over each, on average over its models and batches
    "12": {"llama.cpp": "3.97", "ktransformers": "2.16", "moe-lightning": "1.48", "hybrimoe": "1.32"},
    "13": {"llama.cpp": "7.62", "ktransformers": "3.80", "moe-lightning": "2.45", "hybrimoe": "2.00"},
}


def over(values: Values, series: str, base: str) -> float:
    """Mean over the groups that have both."""
    both = [group for group in values.values() if series in group and base in group]
    return fmean(group[series] / group[base] for group in both)


def part(values: Values, name: str) -> Values:
    """The groups of a figure's part."""
    return {group: found for group, found in values.items() if group.startswith(name)}


def systems(figure: str, values: Values) -> list[Line]:
    found = [
        (f"dali-paper over {name}", over(values, "dali-paper", name), paper)
        for name, paper in OVER[figure].items()
    ]
    found.append(("default over dali-paper", over(values, "default", "dali-paper"), "-"))
    if figure == "12":
        found.append(("dali-paper, share of the bound", over(values, "dali-paper", "bound"), "-"))
        found.append(("default, share of the bound", over(values, "default", "bound"), "-"))
    return found


def assignments(values: Values) -> list[Line]:
    speeds, optima = part(values, "a"), part(values, "b").values()
    shares = [group["greedy"] for group in optima]
    return [
        ("a, greedy over naive", over(speeds, "greedy", "naive"), "4.42"),
        ("a, hybrimoe over naive", over(speeds, "hybrimoe", "naive"), "3.58"),
        ("a, greedy over hybrimoe", over(speeds, "greedy", "hybrimoe"), "1.23"),
        ("a, two_lane over greedy", over(speeds, "two_lane", "greedy"), "-"),
        ("b, greedy, mean share of the optimum", fmean(shares), "0.877 (Table 4)"),
        ("b, greedy, the least batch's", min(shares), "0.846 (Table 4)"),
        ("b, greedy, mean regret", fmean(1 / share - 1 for share in shares), "0.141 (Table 4)"),
        ("b, greedy, mean share of the bound", fmean(group["greedy, bound"] for group in optima), "-"),
        ("b, hybrimoe, mean share of the optimum", fmean(group["hybrimoe"] for group in optima), "-"),
        ("b, two_lane, mean share of the optimum", fmean(group["two_lane"] for group in optima), "-"),
    ]


def prefetching(values: Values) -> list[Line]:
    says = {"random": "below 1", "next_gate": "above random", "residual": "highest", "ridge": "-"}
    found = [(f"a, {name} over greedy alone", value, says[name]) for name, value in values["a"].items()]
    for name, paper in {"next_gate": "0.33-0.65 (Table 2)", "residual": "highest", "ridge": "-"}.items():
        found.append((f"b, {name}, busiest 2 found", values["b, top 2"][name], paper))
    return found


def caching(values: Values) -> list[Line]:
    speeds, hits = part(values, "a"), part(values, "b")
    found = [
        ("a, workload over hybrimoe", over(speeds, "workload", "hybrimoe"), "1.23"),
        ("a, fading over workload", over(speeds, "fading", "workload"), "-"),
    ]
    for name, paper in {"lru": "lowest", "hybrimoe": "between", "workload": "highest", "fading": "-"}.items():
        found.append((f"b, {name}, mean hit rate", fmean(group[name] for group in hits.values()), paper))
    found.append(
        ("b, optimum, mean hit rate", fmean(group["optimum"] for group in hits.values()), "not shown")
    )
    return found


def sensitivity(values: Values) -> list[Line]:
    found: list[Line] = []
    if "a" in values:
        best = max(values["a"], key=lambda count: values["a"][count])
        found.append((f"a, best count ({best}) over none", values["a"][best] / values["a"]["0"], "best: 1"))
        found.append(("a, 8 over none", values["a"]["8"] / values["a"]["0"], "falls"))
    sizes = list(values["b"].values())
    found.append(("b, most resident over fewest", sizes[-1] / sizes[0], "rises"))
    hits = [list(group.values()) for group in part(values, "c").values()]
    found.append(("c, w 2 over w 8, mean hit rate", fmean(hits[0]) / fmean(hits[-1]), "above 1"))
    most, least = (fmean(group[at] for group in hits) for at in (-1, 0))
    found.append(("c, most over fewest swaps, mean hit rate", most / least, "above 1"))
    layers = [fmean(group.values()) for group in part(values, "d").values()]
    found.append(("d, hit rate of the first 8 tokens", layers[0], "lower"))
    found.append(("d, of the last 8", layers[-1], "up to 1.00"))
    return found


def breakdown(values: Values) -> list[Line]:
    before = "prefetch" if "prefetch" in next(iter(values.values())) else "greedy"
    found = [("greedy over naive", over(values, "greedy", "naive"), "4.1")]
    if before == "prefetch":
        found.append(("prefetch over greedy", over(values, "prefetch", "greedy"), "1.09"))
    found.append((f"cache over {before}", over(values, "cache", before), "1.38"))
    found.append(("of that, replacement over residents that stay", over(values, "cache", "resident"), "-"))
    return found


LINES: dict[str, Callable[[Values], list[Line]]] = {
    "12": lambda values: systems("12", values),
    "13": lambda values: systems("13", values),
    "14": assignments,
    "16": prefetching,
    "17": caching,
    "18": sensitivity,
    "19": breakdown,
}


def tables(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], dict[str, dict[str, float]]]:
    """(figure, trace, shape) -> group -> series -> value."""
    found: dict[tuple[str, str, str], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        key = row["figure"], row["trace"], row["shape"]
        found[key][row["group"]][row["series"]] = row["here"]
    return found


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What compares, a column a trace, beside the paper's."""
    found = tables(rows)
    traces = list(dict.fromkeys((trace, shape) for _, trace, shape in found))
    lines: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    for (figure, trace, shape), values in found.items():
        for what, here, paper in LINES[figure](values):
            lines[figure, what, paper][f"{trace} as {shape}"] = round(here, 3)
    names = [f"{trace} as {shape}" for trace, shape in traces]
    ordered = sorted(lines.items(), key=lambda line: (int(line[0][0]), _part(line[0][1])))  # stable
    return [
        {"figure": figure, "what": what, **{name: here.get(name, "-") for name in names}, "paper": paper}
        for (figure, what, paper), here in ordered
    ]


def _part(what: str) -> str:
    """The letter of "a, what", if there is one."""
    return what[0] if what[1] == "," else ""
