"""Routing as other tools write it, one row a chosen expert: CSV, JSON lines, and what llama.cpp's tracers leave.

docs/TRACES.md has the formats. Rows are counted as lines of the file.
"""

from __future__ import annotations

import csv
import json
import math
import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dali.errors import DaliError, UsageError

NAMES = {"token": "step", "turn": "sequence"}  # columns that are known by another name
NEEDED = ("step", "layer", "expert")
PHASES = {"0": 0, "1": 1, "prefill": 0, "decode": 1}
MOST = 2**31 - 1


class Rows:
    """Columns of equal length: where each row stands in the file and what it says. `facts`: what the file says of its model;
    `notes`: what was left out of it, a sentence each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.line, self.sequence, self.step = array("q"), array("q"), array("q")
        self.layer, self.expert, self.phase = array("q"), array("q"), array("b")
        self.weight = array("d")
        self.facts: dict[str, str] = {}
        self.notes: list[str] = []

    def add(
        self, line: int, sequence: int, step: int, layer: int, expert: int, phase: int, weight: float
    ) -> None:
        self.line.append(line)
        self.sequence.append(sequence)
        self.step.append(step)
        self.layer.append(layer)
        self.expert.append(expert)
        self.phase.append(phase)
        self.weight.append(weight)

    def wrong(self, line: int, column: str, why: str) -> DaliError:
        """The error for a row, of which `column` may be "" where it is no row at all."""
        where = f"Row {line}, column {column!r}," if column else f"Row {line}"
        return DaliError(
            f"{where} of {self.path} cannot be used: {why}.",
            "Mend the file; docs/TRACES.md says what may stand in it.",
        )


def read_rows(path: str | Path) -> Rows:
    """The rows of a file in any of the formats, told apart by its first line. UsageError: there is none. DaliError: a field is
    missing or means nothing, by row and column."""
    path = Path(path)
    if not os.path.isfile(path):  # Path's raises for what no path can be
        raise UsageError(
            f"There is no file {str(path)!r}.", "Give one that holds routing; see docs/TRACES.md."
        )
    rows = Rows(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = next((line for line in file if line.strip()), "")
            file.seek(0)
            _reader(first)(rows, file)
    except OSError as error:
        raise DaliError(f"Cannot read {path} ({error.strerror}).", "Give a file that can be read.") from error
    except UnicodeDecodeError as error:
        raise DaliError(f"{path} is no text (offset {error.start}).", "Give CSV or JSON lines.") from error
    except csv.Error as error:
        raise DaliError(f"{path} is no CSV ({error}).", "Give CSV or JSON lines.") from error
    if not rows.line:
        raise DaliError(f"{path} holds no routing.", "Give a file with rows; see docs/TRACES.md.")
    return rows


def _reader(first: str) -> Callable[[Rows, Any], None]:
    if first.lstrip().startswith("{"):
        return _read_json
    fields = first.strip().split(",")
    if all(field.strip().removeprefix("-").isdigit() for field in fields):
        return _read_activations if len(fields) == 2 else _read_positions
    return _read_table


def _read_table(rows: Rows, file: Iterator[str]) -> None:
    """CSV with a header. Lines that begin with # may hold facts, as `# model=x n_expert=64` in BigMoeOnEdge's preamble."""

    def without_comments() -> Iterator[str]:
        for line in file:
            if line.startswith("#"):
                rows.facts.update(dict(part.split("=", 1) for part in line[1:].split() if "=" in part))
                yield "\n"  # so that lines are counted
            else:
                yield line

    reader = csv.reader(without_comments())
    header: list[str] = []
    for fields in reader:
        if not fields:
            continue
        if not header:
            header = _known([name.strip().lower() for name in fields])
            for name in NEEDED:
                if name not in header:
                    said = "step or token" if name == "step" else name
                    raise rows.wrong(reader.line_num, said, "the header has no such column")
        elif len(fields) != len(header):
            column = header[min(len(fields), len(header) - 1)]
            raise rows.wrong(
                reader.line_num, column, f"the row has {len(fields)} fields, the header {len(header)}"
            )
        else:
            _add(rows, reader.line_num, dict(zip(header, fields, strict=True)))


def _read_json(rows: Rows, file: Iterator[str]) -> None:
    """One object a line; `expert` and `weight` may be lists of equal length."""
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            said = json.loads(text)
        except ValueError as error:
            raise rows.wrong(line, "", f"it is no JSON ({error})") from None
        if not isinstance(said, dict):
            raise rows.wrong(line, "", "it is no JSON object")
        fields = dict(zip(_known(list(said)), said.values(), strict=True))
        for name in NEEDED:
            if name not in fields:
                raise rows.wrong(line, "step or token" if name == "step" else name, "it is missing")
        experts, weights = fields["expert"], fields.get("weight")
        if not isinstance(experts, list):
            experts, weights = [experts], [weights]
        if weights is None:
            weights = [None] * len(experts)
        if not isinstance(weights, list) or len(weights) != len(experts):
            raise rows.wrong(line, "weight", f"it holds {weights!r} for {len(experts)} experts")
        for expert, weight in zip(experts, weights, strict=True):
            _add(rows, line, {**fields, "expert": expert, "weight": weight})


def _known(names: list[str]) -> list[str]:
    """Columns by the names used here; one that has both names keeps its own."""
    return [NAMES[name] if name in NAMES and NAMES[name] not in names else name for name in names]


def _add(rows: Rows, line: int, fields: Mapping[str, Any]) -> None:
    """One row by its columns' names."""
    step, layer, expert = [_whole(rows, line, name, fields[name]) for name in NEEDED]
    sequence = _whole(rows, line, "sequence", fields["sequence"]) if "sequence" in fields else 0
    phase = 1
    if "phase" in fields:
        said = str(fields["phase"]).strip().lower()
        if said not in PHASES:
            raise rows.wrong(line, "phase", f"{said!r} is neither 0 (prefill) nor 1 (decode)")
        phase = PHASES[said]
    rows.add(line, sequence, step, layer, expert, phase, _weight(rows, line, fields.get("weight")))


def _whole(rows: Rows, line: int, column: str, value: Any) -> int:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise rows.wrong(line, column, "it is missing")
    try:
        if isinstance(value, bool | float):
            raise ValueError
        number = int(value)
    except (ValueError, TypeError):
        raise rows.wrong(line, column, f"{value!r} is no whole number") from None
    if number < 0:
        raise rows.wrong(line, column, f"{number} is negative")
    if number > MOST:
        raise rows.wrong(line, column, f"{number} is more than {MOST}")
    return number


def _weight(rows: Rows, line: int, value: Any) -> float:
    """NaN where nobody knows it: no such column, an empty field, or "nan", as BigMoeOnEdge writes."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    try:
        if isinstance(value, bool):
            raise ValueError
        weight = float(value)
    except (ValueError, TypeError):
        raise rows.wrong(line, "weight", f"{value!r} is no number") from None
    if weight < 0:
        raise rows.wrong(line, "weight", f"{weight} is negative")
    if math.isinf(weight):
        raise rows.wrong(line, "weight", f"{value!r} is not finite")
    return weight


def _integers(
    rows: Rows, file: Iterator[str], names: tuple[str, ...], least: int
) -> Iterator[tuple[int, list[int]]]:
    """Lines of integers without a header; `least`: fields a line. The fields past `names` are named as the last one."""
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        fields = text.strip().split(",")
        if len(fields) < least:
            raise rows.wrong(
                line,
                names[min(len(fields), len(names) - 1)],
                f"the row has {len(fields)} fields, not {least}",
            )
        numbers = []
        for place, field in enumerate(fields):
            column = names[min(place, len(names) - 1)]
            if column == "pos" and field.strip().startswith("-"):
                numbers.append(-_whole(rows, line, column, field.strip()[1:]))
            else:
                numbers.append(_whole(rows, line, column, field))
        yield line, numbers


def _read_positions(rows: Rows, file: Iterator[str]) -> None:
    """`pos,layer,id0,id1,...`, what `llama-moe-trace` of several llama.cpp forks writes; a prompt's positions are negative. They
    are left out: the tracer copies their ids from a strided tensor as if it were dense."""
    sequence, before, prompts, width = 0, -1, 0, 0
    for line, (position, layer, *experts) in _integers(rows, file, ("pos", "layer", "expert"), 3):
        width = width or len(experts)
        if len(experts) != width:
            raise rows.wrong(line, "expert", f"the row has {len(experts)} experts, the first one {width}")
        if position < 0:
            prompts += 1
            continue
        sequence += position < before  # files of several runs are put one after another
        before = position
        for expert in experts:
            rows.add(line, sequence, position, layer, expert, 1, math.nan)
    if prompts:
        rows.notes.append(
            f"{prompts} rows of prompts are left out: their tracer does not write them reliably."
        )


def _read_activations(rows: Rows, file: Iterator[str]) -> None:
    """`layer,expert`, what `llama-moe-trace` of llama.cpp's pull request 28544 writes: an evaluation's layers one after another,
    each with all its tokens' experts. An answer's evaluations have one token, so their layers have the fewest rows; prompts are
    left out, as above."""
    runs: list[tuple[int, list[tuple[int, int]]]] = []  # (layer, [(line, expert), ...])
    for line, numbers in _integers(rows, file, ("layer", "expert"), 2):
        if len(numbers) > 2:
            raise rows.wrong(line, "expert", f"the row has {len(numbers)} fields, not 2")
        if not runs or runs[-1][0] != numbers[0]:
            runs.append((numbers[0], []))
        runs[-1][1].append((line, numbers[1]))
    if len({layer for layer, _ in runs}) < 2:
        raise rows.wrong(1, "layer", "there is one layer only, so nothing says where a token ends")
    top_k = min(len(run) for _, run in runs)
    evaluations: list[list[tuple[int, list[tuple[int, int]]]]] = []
    for layer, run in runs:
        if not evaluations or layer <= evaluations[-1][-1][0]:
            evaluations.append([])
        evaluations[-1].append((layer, run))
    answers = [one for one in evaluations if all(len(run) == top_k for _, run in one)]
    for step, evaluation in enumerate(answers):
        for layer, run in evaluation:
            for line, expert in run:
                rows.add(line, 0, step, layer, expert, 1, math.nan)
    if left := len(evaluations) - len(answers):
        rows.notes.append(
            f"{left} evaluations of prompts are left out: their tracer does not write them reliably."
        )
