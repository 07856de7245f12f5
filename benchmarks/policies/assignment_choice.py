"""Whether assignment picks the faster place: the CPU's seconds by a profile measured here, held to the kernel's own.

    python benchmarks/policies/assignment_choice.py FOLDER [--traces DIR] [--seconds 70]

Decisions are drawn from recorded routing (place_decisions.py): an absent expert with n tokens at a layer of a step, in batches of
1 to 32 and prompts, and which others the CPU computes in the same call. What it adds to that call is timed, in the recorded
model's sizes and several formats, its weights in no cache. The other place is the accelerator: copy, launch and kernel by a
published profile, on links of 3 to 51 GB/s; that side is modelled, and the same for who decides and for who is right. A decision
is right if the costs say the same place is sooner as the measured time does. Those count whose places differ by more than 10 %.
Whole plans likewise: of those that copy 0, 1, 2, 4 ... experts, the two best as predicted are in the right order or not; `regret`
is what the best as predicted takes longer than the best there is.

At first the machine is measured as by `dali bench hw`, which leaves FOLDER/profile.json; each cell (a trace's format) leaves a
file of its own there, and a second profile comes last. After --seconds no further part is begun: run the command again until it
writes the result. What was measured while other programs took more than 5 % of the processors is measured again.

Who decides: "measured": the profile as it is; "corrected": its times as a live run over a GPU corrects them by the calls it sees
(policies/correction.py), here by the plans' calls of the cell's batch; "settled": its times multiplied by how much longer the
profile's own experts take right beside the decision, so without what the machine has changed since; "again": the second profile;
"quick": the reading of memory that `dali doctor` takes where nobody measured; "nominal": memory's bandwidth as it is read, and
cores x clock x 64 operations; "published": the CPU of the very profile whose accelerator it is. "repeated": one half of a
decision's readings decides, and the other one says what is right: no profile can do better. "copied": settled, where the measured
time is as much longer as it is beside a copy that never ends (beside_copies.py).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import torch

import report
from beside_copies import slower
from dali.hardware import profile as profiles
from dali.hardware import rates
from dali.hardware.profile import Profile
from dali.hardware.quick import quick_profile
from dali.kernels import native
from dali.kernels.expert import ExpertLayout
from dali.policies.correction import Correction
from dali.probe import experts, whole
from dali.probe.watch import Moment, moment
from dali.replay.steps import CHUNK
from dali.replay.traces.public import read
from dali.store.arena import Arena
from expert_calls import Calls, added
from place_decisions import (
    PROMPT,
    RESIDENT,
    Decision,
    Routing,
    Step,
    costs_of,
    drawn,
    joined,
    on_accelerator,
    on_cpu,
    outcome,
    planned,
    share,
    splits,
)

CELLS = {  # hidden, intermediate (the models' config.json), formats
    "gpt-oss-20b_dev": ((2880, 2880), ("mxfp4", "w8", "q4k")),
    "olmoe-1b-7b_dev": ((2048, 1024), ("bf16", "w8", "w4", "q4k", "q6k")),
    "kimi-linear-48b-a3b_dev": ((2304, 1024), ("w4", "q4k", "iq4_xs", "iq2_xs")),
    "smollm2-moe": ((576, 96), ("w8", "q4k")),
    "dali-tiny": ((192, 64), ("w8",)),
}
BATCHES: tuple[int | str, ...] = (1, 2, 4, 8, 32, PROMPT)
DECISIONS, STEPS = 8, 3  # of a batch
LINKS = (  # and how many times as fast
    ("egpu-x4", 1),
    ("egpu-x4", 2),
    ("laptop-8gb", 1),
    ("rtx3060-desktop", 1),
    ("rtx4090-desktop", 1),
    ("rtx4090-desktop", 2),
)
DECIDERS = ("measured", "corrected", "settled", "again", "quick", "nominal", "published")
GOAL = 0.95
POOL = 2**28  # bytes that calls walk through
OTHERS = 0.05  # share of the processors that other programs may take
OPERATIONS = 64  # of a core and cycle: two multiply-adds of 16 values
COPIES = ((2048, 1024), ("w4", "q4k", "bf16"), (1, 8, 64), (3.2e9, 6.4e9, 12.8e9, 25.5e9))


def others(begin: Moment, end: Moment) -> float:
    """The share of the processors that other programs took."""
    passed = end.whole - begin.whole
    return max(end.busy - begin.busy - (end.own - begin.own), 0.0) / passed if passed > 0 else 0.0


def measure_profile() -> str:
    return whole.measure(lambda part, _: print(f"  {part}", file=sys.stderr, flush=True)).to_json()


def layout_of(trace: str, format: str) -> ExpertLayout:
    return experts.layout_of(format, *CELLS[trace][0])


class Yardstick:
    """Experts of the profile's table that tells most of a layout."""

    def __init__(self, profile: Profile, layout: ExpertLayout, pool: Arena) -> None:
        formats = {layout.format_name, rates.RELATIVES.get(layout.format_name)}
        wanted = sum(rows * columns for rows, columns in layout.shape.matrices.values())
        tables = [each for each in rates.alone(profile.tables, "cpu", "experts") if each.format in formats]
        table = min(tables, key=lambda each: max(each.parameters, wanted) / min(each.parameters, wanted))
        self._calls = Calls(pool, experts.layout_of(table.format, table.hidden, table.intermediate))
        call = profile["experts_call"] if "experts_call" in profile.figures else 0.0
        self._said = {tokens: seconds + call / experts.at_once(tokens) for tokens, seconds in table.points}

    def nearest(self, tokens: int) -> int:
        """The number of tokens that the table has."""
        return min(self._said, key=lambda each: max(each, tokens) / min(each, tokens))

    def seconds(self, tokens: int) -> float:
        """Of one expert, in a call as the probe makes them."""
        count = experts.at_once(tokens)
        return self._calls.seconds([tokens] * count) / count

    def said(self, tokens: int) -> float:
        """What the profile has for that."""
        return self._said[tokens]


def measure_cell(
    trace: str, format: str, folder: Path, profile: Profile, pools: tuple[Arena, Arena]
) -> dict[str, Any]:
    """Seconds of the CPU: of decisions, in two halves of their readings, and of the calls of steps' plans. `drift`: how much
    longer than the profile says its own experts take, beside each."""
    routing, layout = Routing(read(folder / f"{trace}.npz")), layout_of(trace, format)
    yardstick, calls, draw = (
        Yardstick(profile, layout, pools[0]),
        Calls(pools[1], layout),
        Random(f"{trace} {format}"),
    )
    decisions, steps = [], []
    for batch in BATCHES:
        for decision in drawn(routing, batch, DECISIONS, draw):
            near = yardstick.nearest(decision.tokens)
            found = added(calls, *decision, partial(yardstick.seconds, near))
            drift = found.pace / yardstick.said(near)
            times = {"seconds": found.seconds, "halves": found.halves, "drift": drift}
            decisions.append({"batch": batch, **decision._asdict(), **times})
        for at in range(1 if batch == PROMPT else STEPS):
            step = routing.step(batch, RESIDENT[at % len(RESIDENT)], draw)
            cpu = {count: calls.median(step.absent[count:]) for count in splits(step)}
            steps.append({"batch": batch, **step._asdict(), "cpu": cpu})
    return {"trace": trace, "format": format, "decisions": decisions, "steps": steps}


def nominal(profile: Profile) -> Profile:
    """What figures of the machine's parts alone say."""
    cores = profile.machine.cores if profile.machine else os.cpu_count() or 1
    rate = OPERATIONS * cores * 1e6 * (report.clock_mhz() or 3000.0)
    figures = {name: each for name, each in profile.figures.items() if name != "experts_call"}
    figures["cpu_bandwidth"] = replace(figures["cpu_bandwidth"], value=profile["memory_bandwidth"])
    figures["cpu_rate"] = replace(figures["cpu_rate"], value=rate)
    return replace(profile, name="nominal", figures=figures, tables=())


def correction(steps: Sequence[Mapping[str, Any]], cpu: Sequence[float], call: float) -> float:
    """What plans multiply the CPU's times by, once they have seen these steps' calls for long."""
    followed = Correction()
    seen = [
        (sum(cpu[tokens] for tokens in step["absent"][int(fetched) :]) + call, seconds)
        for step in steps
        for fetched, seconds in step["cpu"].items()
        if seconds
    ]
    for at in range(1024):
        followed.note(*seen[at % len(seen)])
    return followed.applied


class Judge:
    """What each decider says of a cell, on each link. `copies`: as beside_copies has them."""

    def __init__(
        self, cpus: Mapping[str, Profile], cell: Mapping[str, Any], copies: Sequence[Mapping[str, Any]]
    ) -> None:
        trace, format = cell["trace"], cell["format"]
        layout, shape = layout_of(trace, format), CELLS[trace][0]
        self._cell, self._cpus, self._copies = cell, cpus, copies
        self.costs = cache(
            lambda who, link, faster: costs_of(
                joined(cpus.get(who) or profiles.load(link), profiles.load(link), faster),
                shape,
                format,
                layout.weight_bytes,
                CHUNK,
            )
        )
        of = {batch: [step for step in cell["steps"] if step["batch"] == batch] for batch in BATCHES}
        costs = self.costs("measured", *LINKS[0])
        self._corrections = {
            batch: correction(each, costs.cpu, costs.call) for batch, each in of.items() if each
        }

    def said(self, who: str, entry: Mapping[str, Any], link: tuple[str, float]) -> float:
        """Seconds on the CPU."""
        costs = self.costs(who if who in self._cpus or who == "published" else "measured", *link)
        factors = {"corrected": self._corrections[entry["batch"]], "settled": entry["drift"]}
        seconds = factors.get(who, 1.0) * costs.cpu[entry["tokens"]]
        return on_cpu(seconds, costs, decision_of(entry))

    def decisions(self) -> Iterator[dict[str, Any]]:
        for entry in self._cell["decisions"]:
            for link in LINKS:
                yield self._decision(entry, link)

    def _decision(self, entry: Mapping[str, Any], link: tuple[str, float]) -> dict[str, Any]:
        costs, decision = self.costs("measured", *link), decision_of(entry)
        there = on_accelerator(costs, decision.tokens)
        handed = (
            0.0 if decision.beside else costs.handover - costs.call
        )  # what is measured has the call in it
        real = entry["seconds"] + handed
        said = {who: outcome(self.said(who, entry, link), real, there) for who in DECIDERS}
        first, second = (seconds + handed for seconds in entry["halves"])
        right = {who: each.right for who, each in said.items()}
        longer = self.beside_copies(decision.tokens, link) * entry["seconds"] + handed
        copied = outcome(self.said("settled", entry, link), longer, there)
        return {
            **self._key(entry, link),
            "apart": said["measured"].apart,
            "close": said["measured"].close,
            "cpu sooner": real < there,
            "error": self.said("measured", entry, link) / real - 1,
            "own error": self.said("settled", entry, link) / real - 1,
            "drift": entry["drift"],
            "right": right | {"repeated": (first < there) == (second < there)},
            "copied": copied.right if copied.apart else None,
            "kinds": kinds(self._cell["trace"], self._cell["format"], decision),
        }

    def beside_copies(self, tokens: int, link: tuple[str, float]) -> float:
        """How many times as long an expert takes on the nearest link: in its format, else in the median of those measured."""
        wanted = link[1] * profiles.load(link[0])["link_bandwidth"]
        bandwidth = min({row["bandwidth"] for row in self._copies}, key=lambda each: abs(each - wanted))
        near = min({row["tokens"] for row in self._copies}, key=lambda each: abs(each - tokens))
        of = {
            r["format"]: r["slower"]
            for r in self._copies
            if (r["bandwidth"], r["tokens"]) == (bandwidth, near)
        }
        return of.get(self._cell["format"], statistics.median(of.values()))

    def plans(self) -> Iterator[dict[str, Any]]:
        for entry in self._cell["steps"]:
            step = Step(tuple(entry["resident"]), tuple(entry["absent"]))
            cpu = {int(count): seconds for count, seconds in entry["cpu"].items()}
            for link in LINKS:
                costs = self.costs("measured", *link)
                factor = self._corrections[entry["batch"]]
                after = replace(costs, cpu=[factor * seconds for seconds in costs.cpu])
                yield {
                    **self._key(entry, link),
                    "plan": planned(step, costs, cpu),
                    "corrected": planned(step, after, cpu),
                }

    def _key(self, entry: Mapping[str, Any], link: tuple[str, float]) -> dict[str, Any]:
        names = {"trace": self._cell["trace"], "format": self._cell["format"], "batch": entry["batch"]}
        return {**names, "link": f"{link[0]} x {link[1]}"}


def decision_of(entry: Mapping[str, Any]) -> Decision:
    return Decision(entry["tokens"], tuple(entry["beside"]))


def kinds(trace: str, format: str, decision: Decision) -> list[str]:
    """What might mislead a profile there."""
    size = math.prod(CELLS[trace][0])
    found = {
        "alone in its call": not decision.beside,
        "tokens between two that were measured": decision.tokens not in experts.TOKENS,
        "by another format's table": format not in experts.FORMATS,
        "smaller than what was measured": size < min(map(math.prod, experts.SHAPES)),
    }
    return [kind for kind, holds in found.items() if holds] or ["none of these"]


def middle(
    values: Sequence[float], of: Callable[[Sequence[float]], float] = statistics.median
) -> float | None:
    return round(of(values), 4) if values else None


def summary(
    decisions: Sequence[Mapping[str, Any]], plans: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """`error`: predicted over measured, less 1, as it is; `own_error`: once it is settled; `_size`: of its amount."""
    counted = [each for each in decisions if each["apart"]]
    found = {
        "decisions": len(decisions),
        "apart": len(counted),
        "cpu_sooner": share([each["cpu sooner"] for each in counted]),
        **{who: share([each["right"][who] for each in counted]) for who in (*DECIDERS, "repeated")},
        "copied": share([each["copied"] for each in decisions if each["copied"] is not None]),
        "close": sum(each["close"] for each in counted),
        **{
            f"close_{who}": share([each["right"][who] for each in counted if each["close"]])
            for who in ("measured", "corrected", "settled")
        },
        "error": middle([each["error"] for each in decisions]),
        "error_size": middle([abs(each["error"]) for each in decisions]),
        "own_error": middle([each["own error"] for each in decisions]),
        "own_error_size": middle([abs(each["own error"]) for each in decisions]),
        "drift": middle([each["drift"] for each in decisions]),
    }
    if plans:
        found |= {"plans": len(plans), "plans_apart": sum(each["plan"].apart for each in plans)}
        for name in ("plan", "corrected"):
            made = [each[name] for each in plans]
            found[f"{name}s_right"] = share([plan.right for plan in made if plan.apart])
            found[f"{name}_regret"] = middle([plan.regret for plan in made], statistics.mean)
    return found


def grouped(
    decisions: Sequence[Mapping[str, Any]], plans: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> list[dict[str, Any]]:
    groups: dict[tuple[Any, ...], tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    for at, entries in enumerate((decisions, plans)):
        for entry in entries:
            groups[tuple(entry[key] for key in keys)][at].append(entry)
    return [{**dict(zip(keys, group, strict=True)), **summary(*found)} for group, found in groups.items()]


def by_kind(decisions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where it misses; a decision may be of several kinds."""
    groups: dict[str, list[Any]] = defaultdict(list)
    for each in decisions:
        for kind in each["kinds"]:
            groups[kind].append(each)
    return [{"kind": kind, **summary(found)} for kind, found in groups.items()]


class Parts:
    """What was measured so far, a file each."""

    def __init__(self, folder: Path, seconds: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._until = folder, time.monotonic() + seconds

    def make(self, name: str, measure: Callable[[], str]) -> str:
        """As it was kept, or measured now, until others leave it the processors. SystemExit: the time is over."""
        path = self._folder / f"{name}.json"
        while not path.is_file():
            if time.monotonic() > self._until:
                sys.exit("The time is over: run this again, which goes on from here.")
            begin = moment()
            text, taken = measure(), others(begin, moment())
            print(f"{name}: others took {100 * taken:.0f} %", file=sys.stderr, flush=True)
            if taken <= OTHERS or name == "copies":  # whose other process is its own
                path.write_text(text, "utf-8")
        return path.read_text("utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of what is measured")
    parser.add_argument("--traces", type=Path, default=Path(os.environ.get("DALI_TRACES", "traces")))
    parser.add_argument("--seconds", type=float, default=70, help="after which no part is begun (default 70)")
    arguments = parser.parse_args()
    native.set_threads(torch.get_num_threads())
    parts = Parts(arguments.folder, arguments.seconds)
    profile = Profile.from_json(parts.make("profile", measure_profile), "profile.json")
    pools = Arena(1, POOL), Arena(1, POOL)
    for pool in pools:
        pool.all.fill_(1)
    cells = []
    for trace, (_, formats) in CELLS.items():
        for format in formats:
            measured = partial(measure_cell, trace, format, arguments.traces, profile, pools)
            cells.append(json.loads(parts.make(f"{trace}-{format}", lambda of=measured: json.dumps(of()))))
    copies = json.loads(parts.make("copies", lambda: json.dumps(slower(*COPIES))))
    again = Profile.from_json(parts.make("again", measure_profile), "again.json")
    tell(profile, again, cells, copies)


def tell(
    profile: Profile,
    again: Profile,
    cells: Sequence[Mapping[str, Any]],
    copies: Sequence[Mapping[str, Any]],
) -> None:
    quick = quick_profile(profile.machine.cores if profile.machine else 1)
    cpus = {"measured": profile, "again": again, "quick": quick, "nominal": nominal(profile)}
    judges = [Judge(cpus, cell, copies) for cell in cells]
    decisions = [each for judge in judges for each in judge.decisions()]
    plans = [each for judge in judges for each in judge.plans() if each["plan"] is not None]
    rows = grouped(decisions, plans, ("trace", "format", "batch"))
    groups = {f"by_{key}": grouped(decisions, plans, [key]) for key in ("format", "trace", "batch", "link")}
    groups |= {"by_kind": by_kind(decisions)}
    for found in groups.values():
        report.table(found)
        print()
    everything = summary(decisions, plans)
    report.table([{"all": "all", **everything}])
    figures = ("memory_bandwidth", "cpu_bandwidth", "cpu_rate", "experts_call")
    report.write(
        "assignment_choice",
        rows,
        modelled="the accelerator's side alone",
        goal=GOAL,
        summary=everything,
        **groups,
        rows_below_goal={
            who: sum(row[who] is not None and row[who] < GOAL for row in rows) for who in DECIDERS[:3]
        },
        copies=copies,
        profiles={
            name: {**{each: found[each] for each in figures}, "error": found.error, "notes": found.notes}
            for name, found in (("profile", profile), ("again", again))
        },
    )


if __name__ == "__main__":
    main()
