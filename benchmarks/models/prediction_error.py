"""How far what `dali doctor` predicts is from what runs: decoding and prompts on this machine, over models, formats, batches,
contexts, and budgets of RAM.

    python benchmarks/models/prediction_error.py FOLDER [--gguf A.gguf B.gguf] [--profile FILE] [--rounds 3] [--only NAME]

In FOLDER random models are written (3 GB), unless they are there, and the stores of their experts. The machine is measured anew
at first, as by `dali bench hw`, unless --profile gives a profile; it is left in FOLDER/profile.json.

Each case runs in a process of its own, as a budget of RAM is one of a whole process. Cells of a case take turns, --rounds times;
measured is the median over rounds, and `spread` half the distance between the slowest and the fastest, as a share of it. Of a
budget the table tells the slots that loading found room for, the result also those that doctor plans, and `hits`, the share of
experts that steps did not have to read. Speed is predicted with the slots and hits that were found,
so that an error is one of speed. `inside`: whether the interval that doctor tells holds what was measured.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as dali has it, which is imported after torch here
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import torch

import dali
import report
from dali.doctor.examine import sizes_of
from dali.doctor.outline import read_outline
from dali.doctor.plan import DISK, Free, Plan, make_plan
from dali.doctor.sizes import ModelSizes
from dali.doctor.speed import Interval, predict
from dali.engine.request import Request
from dali.engine.sampling import SamplingParams
from dali.engine.sequence import Sequence
from dali.errors import DaliError
from dali.hardware import own
from dali.hardware.profile import Profile
from dali.kernels import native
from dali.llm import LLM
from dali.loading.locate import locate
from dali.options import LoadOptions
from dali.probe import whole
from dali.store.disk_pool import DiskPool
from dali.telemetry import DiskCounters
from random_moe import RANDOM, build

BATCHES, CONTEXTS, PROMPTS = (1, 4, 8), (64, 1000, 4000), (128, 512, 2048)
ON_DISK_BATCHES, ON_DISK_CONTEXTS, ON_DISK_PROMPTS = (1, 4), (64,), (128, 512)
STEPS, SETTLING, DISK_SETTLING = 8, 2, 24  # decoding steps that are timed, and those before them
WARMING = 2  # prompts of a length before those that are timed
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
    speeds: list[float] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=dict)  # seconds by part
    seconds: float = 0.0
    active: float = 0.0  # experts of a layer that a decoding step computed, the latest round's mean
    found: list[float] = field(default_factory=list)  # shares of experts that were not read

    @property
    def name(self) -> str:
        return f"tg batch {self.batch} at {self.context}" if self.batch else f"pp{self.context}"


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


def cells(plan: Plan, context: int) -> list[Cell]:
    on_disk = plan.where == DISK
    found = [Cell(0, tokens) for tokens in (ON_DISK_PROMPTS if on_disk else PROMPTS)]
    for tokens in ON_DISK_CONTEXTS if on_disk else CONTEXTS:
        found += [Cell(batch, tokens) for batch in (ON_DISK_BATCHES if on_disk else BATCHES)]
    return [cell for cell in found if cell.context + STEPS + DISK_SETTLING + 2 <= context]


def predicted(cell: Cell, sizes: ModelSizes, plan: Plan, profile: Profile) -> Interval:
    hits = statistics.mean(cell.found) if cell.found else None
    plan = replace(plan, plain=profile.reads_plainly)
    if not cell.batch:
        return predict(sizes, profile, plan, prompt=cell.context, hits=hits).prompt
    return predict(sizes, profile, plan, cell.context, cell.batch, hits=hits).decode


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
    begin, before = time.perf_counter(), counters(llm)
    llm.loop.complete([sequence], fresh=True)
    seconds = time.perf_counter() - begin
    note_found(cell, llm, before)
    return cell.context / seconds


def counters(llm: LLM) -> DiskCounters | None:
    pool = llm.loaded.pool
    return pool.counters() if isinstance(pool, DiskPool) else None


def note_found(cell: Cell, llm: LLM, before: DiskCounters | None) -> None:
    """Of a budget the share of experts that were not read since then."""
    if before is not None and (now := counters(llm)) is not None:
        counted = now.since(before)
        cell.found.append(1 - counted.reads / (sum(counted.hits) + sum(counted.misses)))


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
    seconds, counted, before = [], [], llm.telemetry.total()
    while any(sequence.finish_reason is None for sequence in sequences):
        decoding = all(not sequence.in_prefill for sequence in sequences)
        counted.append(counters(llm))
        begin = time.perf_counter()
        engine.step()
        if decoding:
            seconds.append(time.perf_counter() - begin)
    after = llm.telemetry.total()
    note_found(cell, llm, counted[-STEPS])
    cell.active = (after.cpu - before.cpu) / max(after.steps - before.steps, 1)
    return cell.batch / statistics.mean(seconds[-STEPS:])


def measure(llm: LLM, cell: Cell, seed: int, settling: int) -> None:
    """One round of a cell."""
    begin, spent = time.perf_counter(), parts()
    speed = run_decoding(llm, cell, settling) if cell.batch else run_prompt(llm, cell, seed)
    cell.seconds += time.perf_counter() - begin
    for part, value in parts().items():
        cell.spent[part] = cell.spent.get(part, 0.0) + value - spent[part]
    cell.speeds.append(speed)


def row(case: Case, plan: Plan, planned: int, cell: Cell, told: Interval) -> dict[str, Any]:
    measured = statistics.median(cell.speeds)
    low, expected, high = told
    shares = {part: round(seconds / cell.seconds, 3) for part, seconds in cell.spent.items()}
    return {
        "model": case.name,
        "format": plan.format,
        "RAM": f"{plan.slots}/{plan.all_slots}" if case.ram else "all",
        "cell": cell.name,
        "predicted": round(expected, 2),
        "measured": round(measured, 2),
        "error": round(expected / measured - 1, 4),
        "inside": low <= measured <= high,
        "low": round(low, 2),
        "high": round(high, 2),
        "spread": round((max(cell.speeds) - min(cell.speeds)) / 2 / measured, 4),
        "rounds": len(cell.speeds),
        "planned": planned,
        "active": round(cell.active, 2),
        **({"hits": round(statistics.mean(cell.found), 3)} if cell.found else {}),
        **({} if cell.batch else {**shares, "rest": round(1 - sum(shares.values()), 3)}),
    }


def run_case(case: Case, profile: Profile, rounds: int, minutes: float) -> list[dict[str, Any]]:
    begin, sizes = time.monotonic(), sizes_of(read_outline(case.path))
    plan = plan_of(sizes, case)
    llm = dali.load(case.path, quant=case.quant, ram=case.ram)
    planned, pool = plan.slots, llm.loaded.pool
    if case.ram is not None:
        plan = replace(plan, slots=getattr(pool, "slots", plan.all_slots))
    found = cells(plan, min(llm.ctx_size, sizes.context))
    settling = DISK_SETTLING if plan.where == DISK else SETTLING
    for number in range(rounds):
        run_prompt(
            llm, Cell(0, 8), 0
        )  # gives back what the last sequence kept, which takes as long as a short prompt
        for cell in found:
            if number == 0 and not cell.batch:
                for seed in range(WARMING):  # unmeasured: memory for the step
                    run_prompt(llm, cell, 1000 + seed)
                cell.found.clear()
            if number == 0 or time.monotonic() - begin < 60 * minutes:
                measure(llm, cell, number, settling)
    return [row(case, plan, planned, cell, predicted(cell, sizes, plan, profile)) for cell in found]


def apart(*arguments: Any) -> list[dict[str, Any]]:
    """run_case in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
        return one.submit(run_case, *arguments).result()


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a set: errors, and how often the interval held."""
    errors = sorted(abs(row["error"]) for row in rows)
    return {
        "cells": len(rows),
        "median |error|": round(statistics.median(errors), 4),
        "p90 |error|": errors[math.ceil(0.9 * len(errors)) - 1],
        "coverage": round(statistics.mean(row["inside"] for row in rows), 4),
    }


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
        "inside",
        "spread",
    )
    report.table([{key: each[key] for key in shown} for each in rows])
    missing = [each for each in rows if abs(each["error"]) > TARGETS["p90"] or not each["inside"]]
    print(f"\n{len(missing)} of {len(rows)} cells miss: an error above 20 %, or outside of the interval")
    report.table([{key: each[key] for key in (*shown[:4], "error", "inside")} for each in missing])
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
    os.environ["DALI_CONFIG_DIR"] = str(settings.folder / "config")
    begin = time.monotonic()
    profile = profile_of(settings.profile, settings.folder)
    own.own_path().parent.mkdir(exist_ok=True)
    own.own_path().write_text(profile.to_json())  # which loading goes by, as a user's does
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for case in cases(settings.folder, settings.gguf, settings.only):
        print(
            f"{case.name} {case.quant} {case.ram or ''} at {time.monotonic() - begin:.0f} s", file=sys.stderr
        )
        try:
            rows += apart(case, profile, settings.rounds, MINUTES - (time.monotonic() - begin) / 60)
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
