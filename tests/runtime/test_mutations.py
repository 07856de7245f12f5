"""Every dependency the runtime relies on is needed: without any single one, its programs race.

The vector clocks and torch's own sanitizer must both say so. What may depend on what is named by who issued it: demanded and
prefetched copies, swaps, launches of experts, the CPU's experts, the way of the activations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Set
from contextlib import contextmanager
from typing import Any

import pytest

from dali.devices import Dependencies, Operation, RaceError, SimDevice
from dali.devices.dependencies import dependencies
from dali.runtime.executor import Executor
from devices.sanitizer import SanitizerFeed
from runtime.foreseen import echo
from runtime.tiny_runtime import LAYERS, Setting, run, tiny_executor, tiny_model

STEPS = range(5)
PROGRAMS = {
    "on demand through two slots": Setting("gpu", "none", "lru", 2 + LAYERS, batch=2, scratch=2),
    "on demand in groups of two": Setting("gpu", "none", "lru", 8 + LAYERS, batch=8, scratch=8),
    "swaps that copy": Setting("two_lane", "none", "workload", 2 + LAYERS, batch=8, scratch=2),
    "swaps over an idle link": Setting("two_lane", "none", "workload", 2 + 5 * LAYERS, scratch=2),
    "prefetch and swaps beside the CPU": Setting(
        "two_lane", "residual", "workload", 6 + 2 * LAYERS, batch=8, scratch=6, count=2
    ),
    "prefetch two layers ahead": Setting("gpu", "ridge", "lfu", 6 + LAYERS, scratch=6, distance=2, count=2),
}
KINDS = {  # waits for -> what
    ("experts", "demanded copy"),  # it has landed
    ("demanded copy", "experts"),  # the slot it recycles was read
    ("experts", "prefetch"),
    ("prefetch", "experts"),  # the slot was read in an earlier layer
    ("experts", "swap"),  # a new resident's first use
    ("swap", "experts"),  # the evicted expert's last use
    ("cpu", "activations down"),
    ("activations up", "cpu"),
    ("join", "activations up"),
}


class Issued:
    """Notes on whose behalf operations are issued, and which waits are derived between them."""

    def __init__(self, compiled: bool, drop: int | None = None) -> None:
        self.waits: Counter[tuple[str, str]] = Counter()
        self.dependencies: Dependencies = (NamedCompiled if compiled else Named)(self, drop)
        self.task = ""

    def watch(self, executor: Executor) -> None:
        residency, prefetcher = executor.residency, executor.prefetcher
        residency.swap = self.during("swap", residency.swap)  # type: ignore[method-assign]
        prefetcher.queue = self.during("prefetch", prefetcher.queue)  # type: ignore[method-assign]

    def during(self, task: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def doing() -> Any:
            self.task = task
            yield
            self.task = ""

        def watched(*arguments: Any) -> Any:
            with doing():
                return call(*arguments)

        return watched

    def kind(self, operation: Operation) -> str:
        kind = operation.label.rpartition(" ")[0] if operation.label[-1].isdigit() else operation.label
        return (self.task or "demanded copy") if kind == "copy" else kind


def named(plain: Any) -> Any:
    """A derivation that tells an Issued what it derives."""

    class Naming(plain):  # type: ignore[misc]
        def __init__(self, issued: Issued, drop: int | None) -> None:
            super().__init__(drop)
            self._names: dict[int, str] = {}
            self._log = issued

        def derive(self, operation: Operation, reads: Set[int], writes: Set[int]) -> None:
            super().derive(operation, reads, writes)
            self._names[operation.number] = self._log.kind(operation)
            for earlier in operation.waits:
                self._log.waits[self._names[operation.number], self._names[earlier.number]] += 1

    return Naming


Named, NamedCompiled = named(Dependencies), named(type(dependencies()))


def play(
    setting: Setting, drop: int | None = None, compiled: bool = False
) -> tuple[Issued, SanitizerFeed, bool]:
    """Run a program without its n-th dependency: what was issued, what torch's sanitizer says, whether it raced."""
    model, issued, feed = tiny_model(), Issued(compiled, drop), SanitizerFeed()
    budget = setting.slots * model.layout.record_bytes
    device = SimDevice(budget, seed=setting.seed, dependencies=issued.dependencies, races=feed)
    try:
        executor = tiny_executor(setting, model, device, echo)
        issued.watch(executor)
        run(executor, model, setting.batch, STEPS)
    except RaceError:
        return issued, feed, True
    return issued, feed, False


def test_all_kinds_of_dependency_occur() -> None:
    found = [set(play(setting)[0].waits) for setting in PROGRAMS.values()]
    assert set.union(*found) == KINDS


@pytest.mark.parametrize("compiled", [False, True], ids=["python", "compiled"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_no_dependency_can_be_left_out(program: str, compiled: bool) -> None:
    complete, feed, raced = play(PROGRAMS[program], compiled=compiled)
    assert not raced
    assert feed.errors == []
    for drop in range(complete.dependencies.derived):
        _, feed, raced = play(PROGRAMS[program], drop, compiled)
        assert raced, drop
        assert feed.errors, drop
