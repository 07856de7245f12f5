"""Whether `dali doctor` tells the policies over an accelerator in the order in which replays of real routing have them, and how
far apart both are.

For each trace, published profile and share of residents: what doctor predicts of decoding without a word of context, from sizes
alone, beside the replay of the same policy on the same slots. `hits` is the replay's. Doctor knows no routing: its slow end is
even routing, and it expects as many hits as the root of the share that is there. Of all pairs of policies in one cell that the
replay has more than 3 % apart `in_order` come in the same order, `but_copied` without those of "misses copied". All speeds are
modelled.

    python benchmarks/policies/doctor_order.py TRACE.npz [...]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dali.doctor.plan import KERNELS, RAM, Device, Plan
from dali.doctor.sizes import Dense, ExpertFormat, ModelSizes
from dali.doctor.speed import predict
from dali.errors import DaliError
from dali.hardware import profile as profiles
from dali.hardware.profile import Profile
from dali.options import LoadOptions
from dali.replay.cells import read_trace, steps_of
from dali.replay.disk.columns import cpu_seconds
from dali.replay.shapes import Shape, shape_of
from dali.replay.steps import CHUNK
from dali.replay.timeline import SCRATCH, Timeline, dense_seconds
from dali.replay.traces.trace import Trace

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report

TOKENS, SHARES, APART = 1000, (0.25, 0.5), 1.03
OTHERWISE = "qwen3-30b-a3b"  # whose sizes a trace has that says none


def main() -> None:
    if not sys.argv[1:]:
        report.table(report.kept("doctor_order"))
        return
    cells = []
    for path in sys.argv[1:]:
        trace = read_trace(path)
        for name in profiles.known():
            cells += [compared(path, trace, profiles.load(name), share) for share in SHARES]
    rows = [row for cell in cells for row in cell]
    inside = sum(row["low"] <= row["replay"] <= row["high"] for row in rows) / len(rows)
    told = {"inside": inside, "in_order": in_order(cells), "but_copied": in_order(cells, "gpu")}
    report.table(rows)
    print(told)
    report.write("doctor_order", rows, tokens=TOKENS, **{name: round(one, 3) for name, one in told.items()})


def in_order(cells: list[list[dict[str, Any]]], without: str = "") -> float:
    """The share of pairs that come in the same order."""
    pairs = [
        first["doctor"] >= second["doctor"]
        for cell in cells
        for first in cell
        for second in cell
        if first["replay"] > APART * second["replay"] and without not in (first["policy"], second["policy"])
    ]
    return sum(pairs) / len(pairs)


def compared(path: str, trace: Trace, profile: Profile, share: float) -> list[dict[str, Any]]:
    return [
        {
            "trace": trace.name,
            "profile": profile.name,
            "resident": f"{share:.0%}",
            "policy": name,
            "doctor": round(predicted.expected, 1),
            "low": round(predicted.low, 1),
            "high": round(predicted.high, 1),
            "replay": round(speed, 1),
            "off_percent": round(100 * (predicted.expected / speed - 1)),
            "hits": round(hits, 3),
        }
        for name, predicted, speed, hits in speeds(path, trace, profile, round(share * trace.experts))
    ]


def speeds(
    path: str, trace: Trace, profile: Profile, capacity: int
) -> Iterator[tuple[str, Any, float, float]]:
    """Of each policy: its name, doctor's tokens a second, the replay's, and its hits."""
    shape, layers, experts = sized(trace), trace.layers, trace.experts
    slots = capacity * layers + SCRATCH
    cpu_layers = layers - slots // experts
    steps = steps_of(path, 1, TOKENS)
    for name, options in (
        ("two_lane", {}),
        ("cpu_on_miss", {"assign": "cpu_on_miss"}),
        ("gpu", {"assign": "gpu"}),
        ("whole layers", {"n_cpu_moe": cpu_layers}),
    ):
        asked = LoadOptions(device=f"sim:{profile.name}", **options)
        held = (layers - cpu_layers) * experts if asked.n_cpu_moe else slots
        policies = asked.policies(layers, experts, trace.top_k, capacity)
        model = shape.costs(profile, CHUNK)
        result = Timeline(trace, policies, shape, model, capacity, guarded=True).run(steps)
        yield (
            name,
            doctors(trace, shape, profile, held, asked),
            result.tokens / result.seconds,
            result.hit_rate,
        )
    alone = shape.costs(profile, CHUNK, accelerator=False)
    seconds = cpu_seconds(trace, steps, alone, dense_seconds(shape, alone))
    tokens = sum(len(step.rows) for step in steps if not step.prefill)
    yield "CPU alone", doctors(trace, shape, profile, 0, None), tokens / seconds, 0.0


def sized(trace: Trace) -> Shape:
    try:
        shape = shape_of(trace, "own")
    except DaliError:
        shape = shape_of(trace, OTHERWISE)
    return replace(shape, dense_kernels=KERNELS)


def doctors(trace: Trace, shape: Shape, profile: Profile, held: int, options: LoadOptions | None) -> Any:
    """Decoding by doctor, from sizes alone; without options on the CPU alone."""
    layers, slots = trace.layers, trace.layers * trace.experts
    dense = (Dense(shape.dense_parameters * layers, 1, "linear"),)
    sizes = ModelSizes(
        "m", "f", layers, layers, trace.experts, trace.top_k, shape.hidden, shape.intermediate, True, False, dense, (),
        CHUNK, 0, "bfloat16", 0,
    )  # fmt: skip
    layouts = [ExpertFormat(shape.format, shape.expert_bytes, shape.expert_bytes)] * layers
    plan = Plan(RAM, layouts, "bfloat16", False, CHUNK, 0, 0, 0, 0, all_slots=slots)
    if options is not None:
        device = Device(options.device, profile, True)
        plan = replace(plan, resident=held, device=device, options=options)
    return predict(sizes, profile, plan, context=0).decode


if __name__ == "__main__":
    main()
