"""Hardware profiles: the few figures of one PC from which every time is derived.

A profile is a JSON file. Each figure carries its unit, its source and a label: "roofline" for a published
bandwidth or rate times an efficiency (with its own source), "measured" for a probe's result. A probe may add
tables of expert times by workload; where a table fits the expert's shape, `cost.CostModel` reads it instead
of the figures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from dali.errors import DaliError, UsageError

SCHEMA = 1
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
}
DISK = ("disk_bandwidth", "disk_latency", "disk_queue_depth")  # all of them, or none
OPTIONAL = {"link_contended", *DISK}


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a profile; `efficiency` is the share of a published `value` that real code reaches."""

    value: float
    unit: str
    label: str
    source: str
    efficiency: float = 1.0
    efficiency_source: str = ""

    @property
    def effective(self) -> float:
        return self.value * self.efficiency


@dataclass(frozen=True, slots=True)
class Table:
    """Seconds of one expert by workload, as probed: `points` are (tokens, seconds), tokens rising from 1."""

    device: str  # "cpu" or "gpu"
    format: str
    hidden: int
    intermediate: int
    matrices: int
    points: tuple[tuple[int, float], ...]
    label: str
    source: str


@dataclass(frozen=True, slots=True)
class Profile:
    """One PC. `figures` maps the names of UNITS to their figures."""

    name: str
    description: str
    figures: Mapping[str, Figure]
    tables: tuple[Table, ...] = ()

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

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, origin: str) -> Profile:
        """Read a profile; `origin` names it in errors. DaliError: not JSON, another schema, a missing or bad
        entry."""
        try:
            data = json.loads(text)
            schema = data["schema"]
        except (ValueError, KeyError, TypeError) as error:
            raise _broken(origin, f"it is not a JSON object with a schema ({error})") from None
        if schema != SCHEMA:
            raise DaliError(
                f"The hardware profile {origin} has schema {schema!r}; this version reads schema {SCHEMA}.",
                "Probe the machine again with this version, or use one of the shipped profiles: "
                f"{', '.join(known())}.",
            )
        try:
            profile = cls(
                name=str(data["name"]),
                description=str(data["description"]),
                figures={name: Figure(**figure) for name, figure in data["figures"].items()},
                tables=tuple(_table(table) for table in data["tables"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _broken(origin, f"an entry is missing or malformed: {error}") from None
        _check(profile, origin)
        return profile


def known() -> list[str]:
    """Names of the profiles shipped with the package."""
    return sorted(
        entry.name.removesuffix(".json") for entry in _shipped().iterdir() if entry.name.endswith(".json")
    )


def load(name_or_path: str | Path) -> Profile:
    """A shipped profile by name, or any profile by its file's path. UsageError when there is neither."""
    name = str(name_or_path)
    if name in known():
        return Profile.from_json((_shipped() / f"{name}.json").read_text(encoding="utf-8"), name)
    path = Path(name_or_path)
    if not path.is_file():
        raise UsageError(
            f"There is no hardware profile {name!r}.",
            f"Name one of {', '.join(known())}, or give the path of a profile's JSON file.",
        )
    return Profile.from_json(path.read_text(encoding="utf-8", errors="replace"), str(path))


def _shipped() -> Any:
    return files("dali.hardware") / "profiles"


def _table(data: dict[str, Any]) -> Table:
    points = tuple((int(tokens), float(seconds)) for tokens, seconds in data["points"])
    return Table(**{**data, "points": points})


def _broken(origin: str, why: str) -> DaliError:
    return DaliError(
        f"The hardware profile {origin} cannot be used: {why}.",
        "Correct the file, or use one that ships: `dali run --list-devices`.",
    )


def _check(profile: Profile, origin: str) -> None:
    for name, unit in UNITS.items():
        if name not in profile.figures and name not in OPTIONAL:
            raise _broken(origin, f"the figure {name!r} is missing")
        if name in profile.figures and profile.figures[name].unit != unit:
            raise _broken(origin, f"{name} is in {profile.figures[name].unit!r}, not in {unit!r}")
    there = [name for name in DISK if name in profile.figures]
    if there and len(there) < len(DISK):
        missing = next(name for name in DISK if name not in there)
        raise _broken(origin, f"it has the figure {there[0]!r} and not {missing!r}")
    for name, figure in profile.figures.items():
        if name not in UNITS:
            raise _broken(origin, f"the figure {name!r} is unknown")
        if not (_positive(figure.value) and _positive(figure.efficiency) and figure.efficiency <= 1):
            raise _broken(
                origin, f"{name} is {figure.value!r} x {figure.efficiency!r}, not a positive number"
            )
        if name == "disk_queue_depth" and (figure.effective < 1 or figure.effective % 1):
            raise _broken(origin, f"{name} is {figure.effective!r}, not a whole number from 1")
        _sourced(origin, name, figure.label, figure.source)
        if figure.efficiency != 1 and not figure.efficiency_source:
            raise _broken(origin, f"the efficiency of {name} has no source")
    for table in profile.tables:
        name = f"the {table.device} table for {table.format}"
        tokens = [point[0] for point in table.points]
        if table.device not in ("cpu", "gpu") or tokens[:1] != [1] or sorted(set(tokens)) != tokens:
            raise _broken(origin, f"{name} needs a device cpu or gpu and token counts that rise from 1")
        if not all(_positive(seconds) for _, seconds in table.points):
            raise _broken(origin, f"{name} has a time that is not a positive number")
        _sourced(origin, name, table.label, table.source)


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _sourced(origin: str, name: str, label: str, source: str) -> None:
    if label not in LABELS or not source:
        raise _broken(origin, f"{name} needs a source and a label out of {', '.join(LABELS)}")
