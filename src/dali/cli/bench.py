"""`dali bench`: tokens a second of a model, prompts and generation apart."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import dali
from dali.cli.flags.accelerator import SYSTEM, Accelerator
from dali.cli.flags.always import Always
from dali.cli.flags.explained import EXPLAIN, check_explain, explaining
from dali.cli.flags.kinds import NAMES, one_of, whole, wholes
from dali.cli.flags.option import flag
from dali.cli.flags.verb import Verb
from dali.cli.model import find_model, load_model
from dali.cli.terminal import log, meter, passing_note
from dali.errors import UsageError
from dali.loading.locate import DEFAULT_MODEL
from dali.options import LoadOptions
from dali.units import size

if TYPE_CHECKING:
    from dali.llm import LLM
    from dali.measure.bench import Measurement
    from dali.offload.accelerated import AcceleratedExperts

PROMPT, GENERATE, REPETITIONS = (512,), (128,), 5  # llama-bench's
LAYOUTS = ("md", "csv", "json", "jsonl")
LENGTHS = wholes(0)
SHARES = ("roofline", "experts", "dense", "attention", "rest")


@dataclass(frozen=True)
class Settings(Always, Accelerator):
    n_prompt: tuple[int, ...] | None = flag(
        "bench", LENGTHS, "prompt lengths to measure; 0 leaves it out (default: 512)", "-p"
    )
    n_gen: tuple[int, ...] | None = flag(
        "bench", LENGTHS, "numbers of tokens to generate; 0 leaves it out (default: 128)", "-n"
    )
    batch: int | None = flag("bench", whole(1), "sequences at once (default: 1)")
    compare: tuple[str, ...] | None = flag(
        "bench",
        NAMES,
        "systems to measure in turns, in place of --system, as default,fiddler,lru (see --list-policies of run)",
    )
    repetitions: int | None = flag(
        "bench", whole(1), "measured runs of each, after one to warm up (default: 5)", "-r"
    )
    explain: str | None = flag(
        "bench", EXPLAIN, "say which experts went where and why, the warming up included, as `dali run` does"
    )
    output: str | None = flag(
        "bench",
        one_of(LAYOUTS, "FORMAT"),
        f"{', '.join(LAYOUTS)} (default: md)",
        "-o",
        variable="DALI_BENCH_OUTPUT",
    )

    def _parameters(self) -> dict[str, Any]:
        return super()._parameters() | {"parallel": self.batch or 1}


VERB = Verb(
    "bench",
    "Measure tokens a second on random tokens: pp512 computes a prompt of 512, tg128 generates 128. Beside them what "
    "share of the memory's read bandwidth, measured in the same run, generation reaches, and where its time goes. On a simulated "
    "accelerator times are modelled, and there is no such share. MODEL is as for `dali run`.",
    Settings,
    headings=("bench", "model", "accelerator"),
    words="[MODEL]",
)


def main(settings: Settings) -> int:
    if len(settings.words) > 1:
        raise UsageError(
            f"`dali bench` takes one MODEL, not {len(settings.words)} words.", "Measure one at a time."
        )
    prompts = settings.n_prompt or PROMPT
    generations = settings.n_gen or GENERATE
    if not any(prompts) and not any(generations):
        raise UsageError(
            "There is nothing to measure: -p and -n are 0.", "Leave one of them out, or give it a number."
        )
    model = settings.words[0] if settings.words else settings.model or DEFAULT_MODEL
    systems = _systems(settings)
    options = settings.load_options()
    if systems:
        options = replace(options, policy=systems[0])
    if settings.explain is not None:
        check_explain(settings.explain)
    directory = find_model(model, settings)
    llm = load_model(model, directory, options)
    from dali.measure.bench import Test, measure

    batch = settings.batch or 1
    tests = [Test(length, 0, batch) for length in prompts if length] + [
        Test(0, length, batch) for length in generations if length
    ]
    passing_note("Measuring ...")
    rows = []
    ways = _ways(llm, options, systems) or [lambda: llm]
    named: list[str | None] = [*systems] or [None]
    with explaining(llm, settings.explain):
        for measurements in measure(ways, tests, settings.repetitions or REPETITIONS):
            for name, measurement in zip(named, measurements, strict=True):
                rows.append(_row(llm, measurement, batch, name))
                if settings.output == "jsonl":
                    passing_note()
                    print(json.dumps(rows[-1]), flush=True)
        passing_note()
    if settings.output == "json":
        print(json.dumps(rows, indent=2))
    elif settings.output == "csv":
        print(_csv(rows), end="")
    elif settings.output != "jsonl":
        print(_table(rows))
    return 0


def _systems(settings: Settings) -> list[str]:
    """The systems to compare, by their own names. UsageError: they are unknown, or something else says what they would."""
    if settings.compare is None:
        return []
    for name in ("system", "assign", "prefetch", "cache", "n_cpu_moe", "cpu_moe", "lossy", "explain"):
        if getattr(settings, name) not in (None, False):
            raise UsageError(
                f"--compare measures whole systems, so no --{name.replace('_', '-')}.",
                "Leave one of both out.",
            )
    if settings.device in (None, "cpu"):
        raise UsageError(
            "--compare is of systems over an accelerator, and the device is cpu, which computes all experts under each.",
            "Give --device sim:PROFILE, or cuda.",
        )
    found = [str(SYSTEM.parse(name)) for name in settings.compare]
    if len(set(found)) < len(found):
        raise UsageError("--compare names a system twice.", "Name each once.")
    return found


def _ways(llm: LLM, options: LoadOptions, systems: list[str]) -> list[Callable[[], LLM]]:
    """Of each system what puts the model under it; the first is the one that the model was loaded with."""
    from dali.offload.build import accelerate

    def under(experts: AcceleratedExperts) -> LLM:
        if llm.accelerated is not experts:
            experts.resume()
            llm.accelerate(experts)
        return llm

    if not systems or llm.accelerated is None:
        return []
    if llm.loaded.disk is not None:
        raise UsageError(
            f"Experts of {llm.name} are read from disk when they are wanted; what one system leaves in RAM another would find.",
            "Measure each by itself, with --system in place of --compare"
            + ("." if options.ram is None else ", or leave --ram out."),
        )
    first = llm.accelerated
    others = [replace(options, policy=system) for system in systems[1:]]
    every: list[AcceleratedExperts | None] = [first]
    for one in others:
        every.append(accelerate(llm.loaded, llm.engine, one, meter, log.info, taking_turns_with=first))
        first.resume()  # the other's first residents are in the slots, and the next is calibrated by these layers
    return [partial(under, one) for one in every if one is not None]  # as all are, where they are named


def _row(llm: LLM, measurement: Measurement, batch: int, system: str | None) -> dict[str, Any]:
    """One test under llama-bench's keys, and dali's own after them. Times in nanoseconds, rates in 1/s."""
    import torch

    from dali.kernels import native

    test, speeds = measurement.test, measurement.speeds
    nanoseconds = [round(seconds * 1e9) for seconds in measurement.seconds]
    native_threads = native.enabled()
    row: dict[str, Any] = {
        "test": test.name,
        "model_filename": llm.name,
        "model_type": f"{llm.model.config.model_type} {llm.format_name}",
        "model_size": llm.loaded.pool.stored_bytes + llm.dense_bytes,
        "n_batch": llm.engine.scheduler.step_tokens,
        "n_threads": native.threads() if native_threads else torch.get_num_threads(),
        "cache_type": llm.engine.cache_type,
        "n_prompt": test.prompt,
        "n_gen": test.generate,
        "n_sequences": batch,
        "device": "cpu" if llm.executor is None else llm.executor.device.name,
        "system": system or (None if llm.accelerated is None else llm.accelerated.system),
        "modelled": llm.telemetry.modelled,
        "test_time": datetime.now(UTC).isoformat(timespec="seconds"),
        "avg_ns": round(statistics.mean(nanoseconds)),
        "stddev_ns": round(_deviation(nanoseconds)),
        "avg_ts": statistics.mean(speeds),
        "stddev_ts": _deviation(speeds),
        "samples_ns": nanoseconds,
        "samples_ts": speeds,
        "dali_version": dali.__version__,
        "kernels": native.variant() if native_threads else "torch",
        "token_bytes": measurement.token_bytes,
        "read_bandwidth": statistics.median(measurement.bandwidths) if measurement.bandwidths else None,
        "roofline_percent": None if measurement.roofline is None else 100 * measurement.roofline,
    }
    shares = measurement.shares or {}
    return row | {
        f"{part}_percent": 100 * shares[part] if shares else None
        for part in ("experts", "dense", "attention", "rest")
    }


def _deviation(values: list[Any]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    keys = [key for key in rows[0] if not key.startswith("samples")]
    writer = csv.DictWriter(out, keys, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _table(rows: list[dict[str, Any]]) -> str:
    """As llama-bench prints it; Markdown."""
    accelerated = rows[0]["device"] != "cpu"
    head = ["model", "size", "threads", "test", "t/s", *(("device", "system") if accelerated else SHARES)]
    head[4] += ", modelled" if rows[0]["modelled"] else ""
    lines = [head, *([*_cells(row), *(_under(row) if accelerated else _shares(row))] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "| "
        + " | ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    ]
    rule = (
        "| "
        + " | ".join("-" * width if not at else "-" * (width - 1) + ":" for at, width in enumerate(widths))
        + " |"
    )
    return "\n".join([text[0], rule, *text[1:]])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['model_filename']} {row['model_type']}{', q8 cache' if row['cache_type'] == 'q8' else ''}",
        size(row["model_size"]),
        str(row["n_threads"]),
        row["test"],
        f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}",
    )


def _under(row: dict[str, Any]) -> tuple[str, str]:
    return row["device"], row["system"] or "-"


def _shares(row: dict[str, Any]) -> list[str]:
    percents = (row[f"{part}_percent"] for part in SHARES)
    return ["-" if percent is None else f"{percent:.0f} %" for percent in percents]
