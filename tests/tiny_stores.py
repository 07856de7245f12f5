"""A store small enough to damage byte by byte, and experts to fill it with."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import torch

from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape, ExpertWeights
from dali.kernels.formats import FORMATS
from dali.store.packed import part
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


def killed_builds(path: Path, results: Any) -> None:
    """A process whose forks build the store: each killed by the system at a byte of its file, farther on each time, then before
    and after the renaming. Tells how each ended, the last two by 100 and the records that they packed."""
    import resource

    part.WRITTEN = header().record_bytes  # each record reaches the disk
    chance = random.Random(0)
    limits = sorted(chance.randrange(header().file_bytes) for _ in range(25))

    def build(limit: int, rename: Any) -> None:
        source = RandomExperts()

        def die(*names: Path) -> None:
            rename(*names)
            os._exit(100 + len(source.reads))

        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        part.Path.replace = die  # type: ignore[assignment]
        ensure_store(path, header(), source, silent)

    ends = []
    whole = 2 * header().file_bytes
    for limit, rename in [
        *((limit, None) for limit in limits),
        (whole, lambda *names: None),
        (whole, os.replace),
    ]:
        child = os.fork()
        if not child:
            build(limit, rename)
            os._exit(1)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    results.put(ends)
