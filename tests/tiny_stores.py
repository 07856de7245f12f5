"""A store small enough to damage byte by byte, and experts to fill it with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape, ExpertWeights
from dali.kernels.formats import FORMATS
from dali.store.packed.builder import ensure_store
from dali.store.packed.header import StoreHeader

SHAPE = ExpertShape(64, 24, Activation("silu"))


def header(**changes: Any) -> StoreHeader:
    fields = {"model": "tiny", "fingerprint": "f1", "layers": 2, "experts": 3}
    return StoreHeader(**{**fields, "layout": ExpertLayout(SHAPE, FORMATS["w8"]), **changes})


class RandomExperts:
    """Experts that follow from their layer and id. `before_read` may raise, wait or do harm."""

    def __init__(self, before_read: Any = lambda layer, expert: None) -> None:
        self.before_read = before_read
        self.reads: list[tuple[int, int]] = []

    def read(self, layer: int, expert: int) -> ExpertWeights:
        self.before_read(layer, expert)
        self.reads.append((layer, expert))
        generator = torch.Generator().manual_seed(layer * 100 + expert)
        rows = {name: torch.randn(size, generator=generator) for name, size in SHAPE.matrices.items()}
        return ExpertWeights(**rows)


def expected_record(layer: int, expert: int, layout: ExpertLayout) -> torch.Tensor:
    record = torch.empty(layout.record_bytes, dtype=torch.uint8)
    layout.pack(RandomExperts().read(layer, expert), record)
    return record


def silent() -> Any:
    return lambda nbytes: None


def build_slowly(path: Path, results: Any) -> None:
    """A process that builds a store, 20 ms an expert, and tells what it did."""
    source = RandomExperts(lambda layer, expert: time.sleep(0.02))
    built = ensure_store(path, header(), source, silent, lambda message: results.put(("notice", message)))
    results.put(("built", built))


def build_and_hang(path: Path, reached: Any) -> None:
    """A process that is going to be killed in the middle of a build."""

    def hang(layer: int, expert: int) -> None:
        if layer == 1:
            reached.set()
            time.sleep(600)

    ensure_store(path, header(), RandomExperts(hang), silent)
