"""Hardware profiles: the few figures of one PC from which every time is derived.

A profile is a JSON file. Each figure carries its unit, its source and a label: "roofline" for a published
bandwidth or rate times an efficiency (with its own source), "measured" for what `dali bench hw` found, with the spread of its
readings. What was measured has tables beside: seconds of experts and linears by tokens, from which `cost.CostModel` takes the
times of any shape (`rates.py`), and curves, which say how a figure came about.

Schema 2 added to schema 1, all of it optional: tables of linears and of experts beside other work, curves, spreads, which
machine was measured, when and by which dali; and a profile may be of a machine without an accelerator.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from dali.errors import DaliError, UsageError, unreadable
from dali.hardware.machine import Machine

SCHEMA = 2
READ = (1, SCHEMA)  # schemas that this version reads
OWN = "machine"  # the name of this machine's own profile, `own.py`
LABELS = ("roofline", "measured")

UNITS = {
    "memory_bandwidth": "B/s",  # host DRAM, reads, all cores
    "cpu_bandwidth": "B/s",  # packed weights the CPU's expert kernel streams, all cores
    "cpu_rate": "FLOP/s",  # arithmetic of that kernel
    "gpu_memory": "B",
    "gpu_bandwidth": "B/s",
    "gpu_rate": "FLOP/s",
    "link_bandwidth": "B/s",  # host to accelerator, the CPU idle
    "link_contended": "B/s",  # the same while the CPU computes experts; may be left out, see cost.py
    "link_latency": "s",  # fixed part of one copy
    "launch": "s",  # time one kernel launch adds to the compute queue
    "sync": "s",  # time the host loses when it waits for the accelerator
    "disk_bandwidth": "B/s",  # large aligned reads past the page cache
    "disk_latency": "s",  # from a read's begin to its first byte
    "disk_queue_depth": "reads",  # of whole experts, under way at once
    "plain_bandwidth": "B/s",  # the same reads through the page cache, which is emptied of each
    "plain_queue_depth": "reads",
    "check_bandwidth": "B/s",  # checksums of what was just read, one core
    "cpu_call": "s",  # time of a call over all threads that has next to nothing to compute
    "experts_call": "s",  # of a call that computes experts, beside what they take; where it is there, their tables are without it
    "layer_overhead": "s",  # of a decoding layer, beside its weights, keys and values
    "sequence_overhead": "s",  # of each further sequence of a decoding step, likewise
    "step_overhead": "s",  # of a decoding step outside all kernels: Python, sampling, text
    "attention_bandwidth": "B/s",  # keys and values that decoding reads, all cores
    "attention_score": "s",  # while decoding, of a query's head and a token that it attends to, beside reading that
    "attention_rate": "FLOP/s",  # of a prompt's attention
    "attention_query": "s",  # of a value of a prompt's queries, beside that
    "prompt_layer": "s",  # of a layer of a prompt's step, however many tokens it has: Python, and calls of torch and kernels
}
DISK = ("disk_bandwidth", "disk_latency", "disk_queue_depth")  # all of them, or none
PLAIN = ("plain_bandwidth", "plain_queue_depth")  # likewise
ACCELERATOR = (
    "gpu_memory",
    "gpu_bandwidth",
    "gpu_rate",
    "link_bandwidth",
    "link_latency",
    "launch",
    "sync",
)  # likewise
STEP = (
    "cpu_call",
    "experts_call",
    "layer_overhead",
    "step_overhead",
    "sequence_overhead",
    "attention_bandwidth",
    "attention_score",
    "attention_rate",
    "attention_query",
    "prompt_layer",
)
OPTIONAL = {"link_contended", "check_bandwidth", *DISK, *PLAIN, *STEP}
KINDS = ("experts", "linear", "router")
BESIDE = ("", "copies", "reads")
PLAIN_GAIN = 1.1  # times as fast plain reading must be, at least, before experts are read so
APART = 10  # times: what no two readings of one thing can differ by
LEAST, MOST = (
    1e-15,
    1e18,
)  # what figures and times lie between, in any unit, so that nothing made of them overflows
MOST_READS = 1024  # under way at once


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a profile; `efficiency` is the share of a published `value` that real code reaches."""

    value: float
    unit: str
    label: str
    source: str
    efficiency: float = 1.0
    efficiency_source: str = ""
    spread: float = (
        0.0  # of what was measured: half of its readings lie so near their median, as a share of it
    )
    readings: int = 1

    @property
    def effective(self) -> float:
        return self.value * self.efficiency


@dataclass(frozen=True, slots=True)
class Table:
    """Seconds of one expert by workload, as measured: `points` are (tokens, seconds), tokens rising from 1. Of a linear: of one
    matrix [intermediate, hidden]."""

    device: str  # "cpu" or "gpu"
    format: str
    hidden: int
    intermediate: int
    matrices: int
    points: tuple[tuple[int, float], ...]
    label: str
    source: str
    kind: str = "experts"  # or another of KINDS
    beside: str = ""  # what ran at the same time, one of BESIDE
    bytes: int = 0  # packed; 0: not said
    spread: float = 0.0  # the widest of its points'

    @property
    def parameters(self) -> int:
        return self.hidden * self.intermediate * self.matrices


@dataclass(frozen=True, slots=True)
class Curve:
    """How something goes with something: `points` are (x, y), x rising."""

    name: str
    x: str  # what x counts
    unit: str  # of y
    points: tuple[tuple[float, float], ...]
    source: str


@dataclass(frozen=True, slots=True)
class Profile:
    """One PC. `figures` maps the names of UNITS to their figures. Of one that was measured: on which `machine`, when (`date`, as
    2026-11-30), by which version of `dali`, and what was odd about it (`notes`)."""

    name: str
    description: str
    figures: Mapping[str, Figure]
    tables: tuple[Table, ...] = ()
    curves: tuple[Curve, ...] = ()
    machine: Machine | None = None
    date: str = ""
    dali: str = ""
    notes: tuple[str, ...] = ()
    error: float = 0.0  # median of predicted times of experts of other shapes, as a share of what was measured; 0: not checked

    def __getitem__(self, figure: str) -> float:
        """The effective value of a figure, in the unit of UNITS."""
        return self.figures[figure].effective

    @property
    def label(self) -> str:
        """Measured when every figure and table was measured, else roofline."""
        entries: list[Figure | Table] = [*self.figures.values(), *self.tables]
        return "measured" if all(entry.label == "measured" for entry in entries) else "roofline"

    @property
    def has_disk(self) -> bool:
        """Whether it says how fast experts can be read from disk."""
        return DISK[0] in self.figures

    @property
    def plain_share(self) -> float | None:
        """How many times as fast as past the page cache the disk is through it; None where that was not measured."""
        if not self.has_disk or PLAIN[0] not in self.figures:
            return None
        return self[PLAIN[0]] / self[DISK[0]]

    @property
    def reads_plainly(self) -> bool:
        """Whether experts are read through the page cache: where that was measured to be faster, by more than its readings
        differ."""
        share = self.plain_share
        if share is None:
            return False
        spread = self.figures[DISK[0]].spread + self.figures[PLAIN[0]].spread
        return share > max(PLAIN_GAIN, 1 + spread)

    def read_otherwise(self) -> Profile | None:
        """The same with experts read the slower way, through the page cache or past it; None where only one was measured."""
        if self.plain_share is None:
            return None
        figures = {name: figure for name, figure in self.figures.items() if name not in PLAIN}
        if not self.reads_plainly:
            figures |= {name.replace("plain", "disk"): self.figures[name] for name in PLAIN}
        return replace(self, figures=figures)

    @property
    def has_accelerator(self) -> bool:
        """Whether it says anything of an accelerator."""
        return ACCELERATOR[0] in self.figures

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_file(cls, path: Path) -> Profile:
        """As `from_json`. DaliError: it cannot be read."""
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise unreadable(path, error) from error
        return cls.from_json(text, str(path))

    @classmethod
    def from_json(cls, text: str, origin: str) -> Profile:
        """Read a profile; `origin` names it in errors. DaliError: not JSON, another schema, a missing or bad
        entry."""
        try:
            data = json.loads(text)
            schema = data["schema"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _broken(origin, f"it is not a JSON object with a schema ({error})") from None
        if type(schema) is not int or schema not in READ:
            raise DaliError(
                f"The hardware profile {origin} has schema {schema!r}; this version reads schema {SCHEMA} and those before it.",
                "Measure the machine again with this version, by `dali bench hw`, or use one of the shipped profiles: "
                f"{', '.join(known())}.",
            )
        try:
            profile = cls(
                name=str(data["name"]),
                description=str(data["description"]),
                figures={name: Figure(**figure) for name, figure in data["figures"].items()},
                tables=tuple(_table(table) for table in data["tables"]),
                curves=tuple(_curve(curve) for curve in data.get("curves", ())),
                machine=Machine.of(data.get("machine")),
                date=str(data.get("date", "")),
                dali=str(data.get("dali", "")),
                notes=tuple(map(str, data.get("notes", ()))),
                error=float(data.get("error", 0.0)),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise _broken(origin, f"an entry is missing or malformed: {error}") from None
        _check(profile, origin)
        return profile


def known() -> list[str]:
    """Names of the profiles shipped with the package."""
    return sorted(
        entry.name.removesuffix(".json") for entry in _shipped().iterdir() if entry.name.endswith(".json")
    )


def load(name_or_path: str | Path) -> Profile:
    """A shipped profile by name, this machine's own by OWN, or any by its file's path. UsageError when there is none."""
    name = str(name_or_path)
    if name == OWN:
        from dali.hardware import own  # which is made of this file

        return own.read()
    if name in known():
        return Profile.from_json((_shipped() / f"{name}.json").read_text(encoding="utf-8"), name)
    path = Path(name_or_path)
    if not os.path.isfile(path):  # Path's raises for what no path can be
        raise UsageError(
            f"There is no hardware profile {name!r}.",
            f"Name one of {', '.join(known())}, {OWN} for what `dali bench hw` measured here, or a profile's JSON file.",
        )
    return Profile.from_file(path)


def _shipped() -> Any:
    return files("dali.hardware") / "profiles"


def _table(data: dict[str, Any]) -> Table:
    points = tuple((int(tokens), float(seconds)) for tokens, seconds in data["points"])
    return Table(**{**data, "points": points})


def _curve(data: dict[str, Any]) -> Curve:
    return Curve(**{**data, "points": tuple((float(x), float(y)) for x, y in data["points"])})


def _broken(origin: str, why: str) -> DaliError:
    return DaliError(
        f"The hardware profile {origin} cannot be used: {why}.",
        "Correct the file, or use one that ships: `dali run --list-devices`.",
    )


def _check(profile: Profile, origin: str) -> None:
    figures = profile.figures
    without = () if any(name in figures for name in ACCELERATOR) else ACCELERATOR
    for name, unit in UNITS.items():
        if name not in figures and name not in OPTIONAL and name not in without:
            raise _broken(origin, f"the figure {name!r} is missing")
        if name in figures and figures[name].unit != unit:
            raise _broken(origin, f"{name} is in {figures[name].unit!r}, not in {unit!r}")
    for group in (DISK, PLAIN):
        there = [name for name in group if name in figures]
        if there and len(there) < len(group):
            missing = next(name for name in group if name not in there)
            raise _broken(origin, f"it has the figure {there[0]!r} and not {missing!r}")
    for name, figure in figures.items():
        _check_figure(name, figure, origin)
    for table in profile.tables:
        _check_table(table, origin)
    memory, experts = profile["memory_bandwidth"], profile["cpu_bandwidth"]
    if experts > APART * memory:
        raise _broken(origin, f"cpu_bandwidth is {experts / memory:.0f} times memory_bandwidth")
    if not _share(profile.error):
        raise _broken(origin, f"its error is {profile.error!r}")
    for curve in profile.curves:
        xs = [x for x, _ in curve.points]
        rises = bool(xs) and xs == sorted(set(xs)) and all(map(math.isfinite, xs))
        if not rises or not all(_positive(y) for _, y in curve.points):
            raise _broken(origin, f"the curve {curve.name!r} needs positive values over a count that rises")


def _check_figure(name: str, figure: Figure, origin: str) -> None:
    if name not in UNITS:
        raise _broken(origin, f"the figure {name!r} is unknown")
    if not (_positive(figure.value) and _positive(figure.efficiency) and figure.efficiency <= 1):
        raise _broken(
            origin,
            f"{name} is {figure.value!r} x {figure.efficiency!r}, not a positive number below {MOST:.0e}",
        )
    if UNITS[name] == "reads" and (not 1 <= figure.effective <= MOST_READS or figure.effective % 1):
        raise _broken(origin, f"{name} is {figure.effective!r}, not a whole number from 1 to {MOST_READS}")
    if not _share(figure.spread):
        raise _broken(origin, f"{name} has a spread of {figure.spread!r}")
    _sourced(origin, name, figure.label, figure.source)
    if figure.efficiency != 1 and not figure.efficiency_source:
        raise _broken(origin, f"the efficiency of {name} has no source")


def _check_table(table: Table, origin: str) -> None:
    name = f"the {table.device} table for {table.format}"
    tokens = [point[0] for point in table.points]
    if not isinstance(table.format, str):
        raise _broken(origin, f"{name} is of no format")
    if table.device not in ("cpu", "gpu") or tokens[:1] != [1] or sorted(set(tokens)) != tokens:
        raise _broken(origin, f"{name} needs a device cpu or gpu and token counts that rise from 1")
    if not all(_positive(seconds) for _, seconds in table.points):
        raise _broken(origin, f"{name} has a time that is not a positive number")
    for (few, before), (more, after) in pairwise(table.points):
        if after * APART < before:
            raise _broken(origin, f"{name} has {more} tokens take {before / after:.0f} times less than {few}")
    sizes = table.hidden, table.intermediate, table.matrices
    if not all(_whole(size, 1) for size in sizes) or not _whole(table.bytes, 0):
        raise _broken(
            origin, f"{name} is of a matrix of {' x '.join(map(repr, sizes))} in {table.bytes!r} bytes"
        )
    if not _share(table.spread):
        raise _broken(origin, f"{name} has a spread of {table.spread!r}")
    if table.kind not in KINDS or table.beside not in BESIDE:
        raise _broken(origin, f"{name} is of {table.kind!r} beside {table.beside!r}")
    _sourced(origin, name, table.label, table.source)


def _positive(value: object) -> bool:
    return type(value) in (int, float) and LEAST <= value < MOST  # type: ignore[operator]


def _share(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < MOST  # type: ignore[operator]


def _whole(value: object, least: int) -> bool:
    return type(value) is int and least <= value < MOST


def _sourced(origin: str, name: str, label: str, source: str) -> None:
    if label not in LABELS or not isinstance(source, str) or not source:
        raise _broken(origin, f"{name} needs a source and a label out of {', '.join(LABELS)}")
