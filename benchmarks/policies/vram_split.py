"""What splitting an accelerator's memory by modelled time gives and takes: for a single user, and for 8 answers at once.

For each model, published profile and context: how many whole contexts have room beside experts by dali's rule, the fastest for
all together of those by which one that is alone is at most 5 % slower, and by another, the least sum of both relative times.
`slower` is what one that is alone loses by it; `together` how many times sooner 8 answers have their tokens than with room for
one context, as the rule before had it. Experts in w4, all else in bfloat16. All times are modelled.

    python benchmarks/policies/vram_split.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from dali.hardware import profile as profiles
from dali.hardware.profile import Profile
from dali.loading.room import DEVICE_WORK
from dali.policies.once.vram import Experts, split_by_time
from dali.replay.shapes import SHAPES

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report

ANSWERS = 8
CONTEXTS = (2048, 4096, 8192, 16384)


class Model(NamedTuple):
    """`token`: bytes of a token's keys and values; `embeddings`: weights."""

    layers: int
    experts: int
    top_k: int
    token: int
    embeddings: int


MODELS = {
    "qwen3-30b-a3b": Model(48, 128, 8, 48 * 2 * 4 * 128 * 2, 151936 * 2048),
    "olmoe-1b-7b": Model(16, 64, 8, 16 * 2 * 16 * 128 * 2, 50304 * 2048),
}


def experts_of(name: str, profile: Profile) -> Experts:
    model, shape = MODELS[name], SHAPES[name]
    costs = shape.costs(profile, 512)
    dense = costs.dense_seconds(shape.dense_bytes, shape.dense_parameters, shape.dense_kernels)
    return Experts(model.layers, model.experts, model.top_k, shape.expert_bytes, costs.costs, dense)


def row(name: str, profile: Profile, context: int) -> dict[str, Any] | None:
    """None where not even one context has room."""
    model, experts = MODELS[name], experts_of(name, profile)
    whole = context * model.token
    dense = model.layers * SHAPES[name].dense_bytes + 2 * model.embeddings
    room = int(profile["gpu_memory"]) - dense - DEVICE_WORK - whole // model.layers
    if room < whole:
        return None
    numbers = range(1, min(ANSWERS, room // whole) + 1)
    alone = {number: experts.seconds(1, room - number * whole) for number in numbers}
    together = {number: experts.seconds(number, room - number * whole) / number for number in numbers}
    fastest = min(together.values())
    found = {
        "bound": split_by_time(room, whole, ANSWERS, experts).sequences,
        "sum": min(numbers, key=lambda number: alone[number] / alone[1] + together[number] / fastest),
    }
    told: dict[str, Any] = {"model": name, "profile": profile.name, "context": context}
    for rule, number in found.items():
        told[f"{rule}_contexts"] = number
        told[f"{rule}_slower_percent"] = round(100 * (alone[number] / alone[1] - 1), 1)
        told[f"{rule}_together"] = round(together[1] / together[number], 2)
    return told


def main() -> None:
    asked = [
        (name, profiles.load(each), context)
        for name in MODELS
        for each in profiles.known()
        for context in CONTEXTS
    ]
    rows = [found for each in asked if (found := row(*each)) is not None]
    report.table(rows)
    report.write("vram_split", rows, answers=ANSWERS)


if __name__ == "__main__":
    main()
