"""Routing that is decided beforehand, so that a test knows what a prediction or a swap is worth. All times are modelled."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

from dali.runtime.executor import Executor
from runtime.tiny_runtime import EXPERTS, HIDDEN, LAYERS, TOP_K, Setting, tiny_executor, tiny_model

TOKENS = 2
Draw = Callable[[Random, int], list[int]]
"""(random, layer) -> one token's experts."""


class Foresight:
    """A predictor that knows the next layer's routing, or one that always names `instead`."""

    def __init__(self, instead: list[int] | None = None) -> None:
        self.instead = instead
        self.step: list[Tensor] = []
        self.calls = 0

    def predict(self, layer: int, hidden: Tensor) -> tuple[int, Tensor] | None:
        self.calls += 1
        if layer + 1 == LAYERS:
            return None
        return layer + 1, self.step[layer + 1] if self.instead is None else torch.tensor(
            [self.instead] * len(hidden)
        )


def echo(layout: Any, records: Any, offsets: Any, slots: Tensor, hidden: Tensor, rows: Tensor) -> None:
    """A cheap kernel: every expert returns its input."""
    rows[slots] = hidden[slots // TOP_K].float()


def executor_of(setting: Setting, foresight: Foresight | None = None, dense: float = 50e-6) -> Executor:
    """`dense`: seconds between two layers' experts."""
    executor = tiny_executor(setting, tiny_model(), kernel=echo, dense=dense)
    executor.prefetcher._predictor = foresight
    return executor


@torch.inference_mode()
def play(executor: Executor, steps: int, draw: Draw, watch: Callable[[], None] = lambda: None) -> float:
    """Run so many steps; seconds of the device's clock. `watch` is called after each."""
    random, began = Random(0), executor.device.now()
    foresight: Any = executor.prefetcher._predictor
    for _ in range(steps):
        step = [torch.tensor([draw(random, layer) for _ in range(TOKENS)]) for layer in range(LAYERS)]
        if foresight is not None:
            foresight.step = step
        for layer, ids in enumerate(step):
            executor.run(layer, torch.ones(TOKENS, HIDDEN), ids, torch.ones(TOKENS, TOP_K))
        watch()
    return executor.device.now() - began


def anywhere(random: Random, layer: int) -> list[int]:
    return random.sample(range(EXPERTS), TOP_K)
