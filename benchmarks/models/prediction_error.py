"""How far what `dali doctor` predicts is from what runs: decoding and prompts on this machine, over models, formats, batches,
contexts, and budgets of RAM.

    python benchmarks/models/prediction_error.py FOLDER [--gguf A.gguf B.gguf] [--profile FILE] [--rounds 3] [--only NAME]

In FOLDER random models are written (3 GB), unless they are there, and the stores of their experts. The machine is measured anew
at first, as by `dali bench hw`, unless --profile gives a profile; it is left in FOLDER/profile.json.

Cells of a model take turns, --rounds times; before and after each one memory's bandwidth and one thread's arithmetic are read
again. `error` is predicted over measured, less 1, by the profile as it is; `settled` the same once the prediction is
multiplied by how memory (decoding) or arithmetic (prompts) was beside the cell, relative to right after the profile was
measured or read, and decoding is predicted by the experts that were met (`active`): what is left is the times' own error.
Cells from disk are not settled. `inside`: whether the interval that doctor tells holds the median of what was measured.
Measured is the median over rounds; `spread`, half the distance between the slowest and the fastest, as a share of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import torch

import dali
import report
from dali.doctor.examine import sizes_of
from dali.doctor.outline import read_outline
from dali.doctor.plan import DISK, IMPORTED, Free, Plan, make_plan
from dali.doctor.sizes import ModelSizes
from dali.doctor.speed import Interval, predict
from dali.engine.request import Request
from dali.engine.sampling import SamplingParams
from dali.engine.sequence import Sequence
from dali.errors import DaliError
from dali.hardware.free_memory import own_memory
from dali.hardware.profile import Profile
from dali.kernels import native
from dali.llm import LLM
from dali.loading.locate import locate
from dali.options import LoadOptions
from dali.probe import memory, whole
from dali.store.arena import Arena
from random_moe import RANDOM, build

BATCHES, CONTEXTS, PROMPTS = (1, 4, 8), (64, 1000, 4000), (128, 512, 2048)
ON_DISK_BATCHES, ON_DISK_CONTEXTS, ON_DISK_PROMPTS = (1, 4), (64,), (128, 512)
STEPS, SETTLING, DISK_SETTLING = 8, 2, 24  # decoding steps that are timed, and those before them
SHARES = (0.35, 0.7)  # of experts that RAM holds
MINUTES = 20  # after which no further round is begun
TARGETS = {"median": 0.10, "p90": 0.20, "coverage": 0.90}
FORMATS = (
    ("qwen3-moe", "w8"),
    ("qwen3-moe", "w4"),
    ("olmoe", "q4k"),
    ("olmoe", "bf16"),
    ("gpt-oss", "mxfp4"),
)
ON_DISK = ("qwen3-moe", "w8")


class Case(NamedTuple):
    """A model as it is run; `ram`: a budget in bytes, or none."""

    name: str
    path: Path
    quant: str
    ram: int | None = None

    @property
    def options(self) -> LoadOptions:
        return LoadOptions(quant=self.quant, ram=self.ram)


@dataclass
class Cell:
    """What is predicted and measured: tokens a second. `batch` is 0 for prompts, whose tokens `context` is."""

    batch: int
    context: int
    predicted: Interval
    speeds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)  # bandwidth beside it over the profile's
    pace: list[float] = field(
        default_factory=list
    )  # arithmetic beside it over that when the profile was made
    spent: dict[str, float] = field(default_factory=dict)  # seconds by part
    seconds: float = 0.0
    active: float = 0.0  # experts of a layer that a decoding step computed, the latest round's mean

    @property
    def name(self) -> str:
        return f"tg batch {self.batch} at {self.context}" if self.batch else f"pp{self.context}"


class Paces:
    """How fast memory and arithmetic are now, relative to when this was made."""

    def __init__(self) -> None:
        self._pool = Arena(1, 2**29)
        self._pool.all.fill_(1)
        self._arithmetic = whole.pace(time.perf_counter)
        self._before = self._now()

    def _now(self) -> tuple[float, float]:
        return memory.pace(self._pool), self._arithmetic()

    def __call__(self) -> tuple[float, float]:
        read, computed = self._now()
        return self._before[0] / read, self._before[1] / computed


def cases(folder: Path, ggufs: list[Path], only: str | None) -> Iterator[Case]:
    found = [Case("dali-tiny", locate(None), "auto")]
    found += [Case(path.stem, path, "auto") for path in ggufs]
    found += [Case(name, folder / name, quant) for name, quant in FORMATS]
    for case in found:
        if only is None or only in f"{case.name} {case.quant}":
            if case.name in RANDOM:
                build(folder, case.name)
            yield case
            if (case.name, case.quant) == ON_DISK:
                yield from (case._replace(ram=ram) for ram in budgets(case))


def budgets(case: Case) -> Iterator[int]:
    """Bytes of RAM with which doctor's plan holds these shares of the experts."""
    for wanted in SHARES:
        for mib in range(256, 2**15, 16):
            try:
                plan = plan_of(sizes_of(read_outline(case.path)), case._replace(ram=mib * 2**20))
            except DaliError:
                continue
            if plan.where != DISK or plan.slots >= wanted * plan.all_slots:
                yield mib * 2**20
                break


def plan_of(sizes: ModelSizes, case: Case) -> Plan:
    return make_plan(sizes, case.options, Free(2**40), native.enabled())


def cells(sizes: ModelSizes, plan: Plan, profile: Profile, context: int) -> list[Cell]:
    on_disk = plan.where == DISK
    found = [
        Cell(0, tokens, predict(sizes, profile, plan, prompt=tokens).prompt)
        for tokens in (ON_DISK_PROMPTS if on_disk else PROMPTS)
    ]
    for tokens in ON_DISK_CONTEXTS if on_disk else CONTEXTS:
        for batch in ON_DISK_BATCHES if on_disk else BATCHES:
            decode = predict(sizes, profile, plan, tokens, batch).decode
            found.append(Cell(batch, tokens, decode))
    return [cell for cell in found if cell.context + STEPS + DISK_SETTLING + 2 <= context]


def prompt_of(llm: LLM, tokens: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, llm.model.config.vocab_size, (tokens,), generator=generator).tolist())


def parts() -> dict[str, float]:
    """Seconds of kernels so far."""
    spent = native.seconds()
    dense = spent["dense"] + spent["norm"] + spent["router"]
    return {"experts": spent["experts"], "dense": dense, "attention": spent["attention"]}


def run_prompt(llm: LLM, cell: Cell, seed: int) -> float:
    """Tokens a second."""
    params = SamplingParams(temperature=0, ignore_eos=True)
    sequence = Sequence(Request(prompt_of(llm, cell.context, seed), cell.context + 1, params))
    begin = time.perf_counter()
    llm.loop.complete([sequence], fresh=True)
    return cell.context / (time.perf_counter() - begin)


class Drawn:
    """In a sampler's place: tokens drawn, as random models soon say one thing over and over, by one and the same experts."""

    def __init__(self, vocabulary: int, seed: int) -> None:
        self._draw, self._vocabulary = Random(seed), vocabulary

    def sample(self, *arguments: Any) -> int:
        return self._draw.randrange(3, self._vocabulary)


def run_decoding(llm: LLM, cell: Cell, settling: int) -> float:
    """Tokens a second of all sequences. They share their prompt but for its last token, and so do not compute it anew."""
    prompt, params = prompt_of(llm, cell.context, 0), SamplingParams(temperature=0, ignore_eos=True)
    limit, engine = len(prompt) + settling + STEPS, llm.engine
    llm.loop.complete([Sequence(Request(prompt, len(prompt) + 1, params))])  # leaves it to the others
    sequences = [
        Sequence(Request((*prompt[:-1], 3 + 7 * index), limit, params)) for index in range(cell.batch)
    ]
    for index, sequence in enumerate(sequences):
        sequence.sampler = Drawn(llm.model.config.vocab_size, index)  # type: ignore[assignment]
        engine.add(sequence)
    seconds, before = [], llm.telemetry.total()
    while any(sequence.finish_reason is None for sequence in sequences):
        decoding = all(not sequence.in_prefill for sequence in sequences)
        begin = time.perf_counter()
        engine.step()
        if decoding:
            seconds.append(time.perf_counter() - begin)
    after = llm.telemetry.total()
    cell.active = (after.cpu - before.cpu) / max(after.steps - before.steps, 1)
    return cell.batch / statistics.mean(seconds[-STEPS:])


def measure(llm: LLM, cell: Cell, paces: Paces, seed: int, settling: int) -> None:
    """One round of a cell."""
    before = paces()
    begin, spent = time.perf_counter(), parts()
    speed = run_decoding(llm, cell, settling) if cell.batch else run_prompt(llm, cell, seed)
    cell.seconds += time.perf_counter() - begin
    for part, value in parts().items():
        cell.spent[part] = cell.spent.get(part, 0.0) + value - spent[part]
    after = paces()
    cell.speeds.append(speed)
    cell.memory.append((before[0] + after[0]) / 2)
    cell.pace.append((before[1] + after[1]) / 2)


def row(case: Case, sizes: ModelSizes, profile: Profile, plan: Plan, llm: LLM, cell: Cell) -> dict[str, Any]:
    measured = statistics.median(cell.speeds)
    drift = statistics.median(cell.memory if cell.batch else cell.pace)
    if plan.where == DISK:
        drift = 1.0  # the disk has a pace of its own
    low, expected, high = cell.predicted
    routed = expected
    if cell.batch and plan.where != DISK:
        routed = predict(sizes, profile, plan, cell.context, cell.batch, active=cell.active).decode.expected
    shares = {part: round(seconds / cell.seconds, 3) for part, seconds in cell.spent.items()}
    return {
        "model": case.name,
        "format": plan.format,
        "RAM": f"{plan.slots}/{plan.all_slots}" if plan.where == DISK else "all",
        "cell": cell.name,
        "predicted": round(expected, 2),
        "measured": round(measured, 2),
        "error": round(expected / measured - 1, 4),
        "settled": round(routed * drift / measured - 1, 4),
        "inside": low <= measured <= high,
        "low": round(low, 2),
        "high": round(high, 2),
        "spread": round((max(cell.speeds) - min(cell.speeds)) / 2 / measured, 4),
        "memory": round(statistics.median(cell.memory), 3),
        "pace": round(statistics.median(cell.pace), 3),
        "rounds": len(cell.speeds),
        "slots": getattr(llm.loaded.pool, "slots", 0) if plan.where == DISK else 0,
        "active": round(cell.active, 2),
        **({} if cell.batch else {**shares, "rest": round(1 - sum(shares.values()), 3)}),
    }


def run_case(case: Case, profile: Profile, paces: Paces, rounds: int, time_left: Callable[[], bool]) -> Any:
    sizes = sizes_of(read_outline(case.path))
    plan = plan_of(sizes, case)
    beside = max(own_memory() - IMPORTED, 0)  # what this process has, and a fresh one would not
    llm = dali.load(case.path, quant=case.quant, ram=None if case.ram is None else case.ram + beside)
    found = cells(sizes, plan, profile, min(llm.ctx_size, sizes.context))
    settling = DISK_SETTLING if plan.where == DISK else SETTLING
    for number in range(rounds):
        for cell in found:
            if number == 0 and not cell.batch:
                run_prompt(llm, cell, 1000)  # once unmeasured: memory for the step
            if number == 0 or time_left():
                measure(llm, cell, paces, number, settling)
    rows = [row(case, sizes, profile, plan, llm, cell) for cell in found]
    del llm
    gc.collect()
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a set: errors as they are and settled, and how often the interval held."""
    found: dict[str, Any] = {"cells": len(rows)}
    for key in ("error", "settled"):
        errors = sorted(abs(row[key]) for row in rows)
        found[f"median |{key}|"] = round(statistics.median(errors), 4)
        found[f"p90 |{key}|"] = errors[math.ceil(0.9 * len(errors)) - 1]
    found["coverage"] = round(statistics.mean(row["inside"] for row in rows), 4)
    return found


def profile_of(path: Path | None, folder: Path) -> Profile:
    if path is not None:
        return Profile.from_json(path.read_text(), str(path))
    print("measuring the machine", file=sys.stderr, flush=True)
    profile = whole.measure(lambda part, share: print(f"  {part}", file=sys.stderr, flush=True))
    (folder / "profile.json").write_text(profile.to_json())
    return profile


def tell(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Print all, what misses, and how far the set is from its targets."""
    shown = (
        "model",
        "format",
        "RAM",
        "cell",
        "predicted",
        "measured",
        "error",
        "settled",
        "inside",
        "spread",
    )
    report.table([{key: each[key] for key in shown} for each in rows])
    missing = [each for each in rows if abs(each["settled"]) > TARGETS["p90"] or not each["inside"]]
    print(f"\n{len(missing)} of {len(rows)} cells miss: settled error above 20 %, or outside of the interval")
    report.table([{key: each[key] for key in (*shown[:4], "error", "settled", "inside")} for each in missing])
    sets = {
        "all": rows,
        "decoding": [each for each in rows if each["cell"].startswith("tg") and each["RAM"] == "all"],
        "prompts": [each for each in rows if each["cell"].startswith("pp") and each["RAM"] == "all"],
        "from disk": [each for each in rows if each["RAM"] != "all"],
    }
    found = {name: summary(each) for name, each in sets.items() if each}
    print()
    report.table([{"set": name, **each} for name, each in found.items()])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gguf", type=Path, nargs="*", default=[])
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="cases whose name and format hold this")
    settings = parser.parse_args()
    settings.folder.mkdir(exist_ok=True, parents=True)
    os.environ["DALI_CACHE_DIR"] = str(settings.folder / "cache")
    begin = time.monotonic()
    profile, paces = profile_of(settings.profile, settings.folder), Paces()
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for case in cases(settings.folder, settings.gguf, settings.only):
        print(
            f"{case.name} {case.quant} {case.ram or ''} at {time.monotonic() - begin:.0f} s", file=sys.stderr
        )
        try:
            rows += run_case(
                case,
                profile,
                paces,
                settings.rounds,
                lambda: time.monotonic() - begin < 60 * MINUTES,
            )
        except DaliError as error:
            failed[f"{case.name} {case.quant}"] = str(error)
            print(f"failed: {error}", file=sys.stderr, flush=True)
    if not rows:
        sys.exit("Nothing was measured.")
    found = tell(rows)
    figures = {name: figure.effective for name, figure in profile.figures.items()}
    report.write(
        "prediction_error",
        rows,
        targets=TARGETS,
        summary=found,
        failed=failed,
        minutes=round((time.monotonic() - begin) / 60, 1),
        notes=list(profile.notes),
        profile=json.loads(json.dumps(figures)),
    )


if __name__ == "__main__":
    main()
