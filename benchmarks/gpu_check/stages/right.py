"""Kernels against the CPU's: experts of every format, 1 to 64 tokens, empty experts, biases, activations; and those of the dense
part in two models' sizes. Outputs are poisoned before. No bit may differ: integer arithmetic is exact, and floats are multiplied
and added in the CPU's order."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from one_layer import Build, OneLayer, differing, random_step

from dali.kernels.activation import CLAMPED, KINDS, Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import FORMATS, get_format
from dense_kernels import SIZES, DenseKernels, Sizes
from device import builder, note_stand_in, open_gpu
from kernels.packed import random_records
from result import Result

EXPERTS, TOP_K, SEEDS = 12, 4, 3
DENSE_TOKENS = (1, 8, 33)
TOKENS = (1, 2, 3, 5, 7, 8, 9, 16, 17, 32, 33, 64)


def run(result: Result) -> None:
    gpu = open_gpu()
    note_stand_in(result, gpu)
    build = builder(gpu)
    total = sum(check(result, gpu, build, title, layout) for title, layout in layouts())
    result.limit("experts' outputs that differ", total, most=0)
    total = sum(check_dense(result, gpu, build, title, sizes) for title, sizes in SIZES.items())
    result.limit("the dense part's values that differ", total, most=0)


def layouts() -> list[tuple[str, ExpertLayout]]:
    plain = ExpertShape(256, 96, Activation("silu"))
    found = [(name, ExpertLayout(plain, get_format(name))) for name in FORMATS]
    mixed = {"gate": get_format("q4k"), "up": get_format("q4k"), "down": get_format("w8")}
    found.append(("q4k, down w8", ExpertLayout.mixed(plain, mixed)))
    for hidden, intermediate in ((40, 40), (300, 48), (2048, 768)):
        shape = ExpertShape(hidden, intermediate, Activation("silu"))
        found.append((f"w4 {hidden} x {intermediate}", ExpertLayout(shape, get_format("w4"))))
    for kind in KINDS:
        activation = Activation(kind, 1.702, 7.0) if kind in CLAMPED else Activation(kind)
        shape = ExpertShape(64, 48, activation, biased=True)
        found.append((f"w8, biases, {kind}", ExpertLayout(shape, get_format("w8"))))
    return found


def check(
    result: Result,
    gpu: Any,
    build: Build,
    title: str,
    layout: ExpertLayout,
    seeds: int = SEEDS,
    tokens: tuple[int, ...] = TOKENS,
) -> int:
    """Outputs that differ, over all seeds and numbers of tokens; half of each step's experts are also run on the CPU."""
    wrong = compared = 0
    for seed in range(seeds):
        dtype = (torch.bfloat16, torch.float32, torch.float16)[seed % 3]
        layer = OneLayer(gpu, build, layout, random_records(layout, EXPERTS, seed), TOP_K, dtype, max(tokens))
        for count in tokens:
            step = random_step(layer, count, TOP_K, seed, experts=EXPERTS - 3)  # three are always empty
            expected = layer.expected(*step)
            for cpu in ((), range(0, EXPERTS, 2)):
                active = set(step[1].flatten().tolist())
                found = layer.step(*step, cpu=[expert for expert in cpu if expert in active])
                wrong += differing(found, expected)
                compared += found.numel()
    result.row(layout=title, compared=compared, differ=wrong)
    return wrong


def check_dense(
    result: Result, gpu: Any, build: Build, title: str, sizes: Sizes, tokens: tuple[int, ...] = DENSE_TOKENS
) -> int:
    """Values that differ, over all numbers of tokens, in bfloat16 and float32."""
    kernels, found = DenseKernels(gpu, build, sizes), dict[str, list[int]]()
    for dtype, count in itertools.product((torch.bfloat16, torch.float32), tokens):
        for name, compared in kernels.compare(count, dtype):
            found[name] = [sum(each) for each in zip(found.get(name, (0, 0)), compared, strict=True)]
    for name, (differ, compared) in found.items():
        result.row(kernels=name, sizes=title, compared=compared, differ=differ)
    return sum(differ for differ, _ in found.values())
