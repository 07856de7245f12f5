"""Looking on while a model answers: which experts went where, why, and how long it took."""

from __future__ import annotations

from collections.abc import Sequence

from dali.devices import SimDevice
from dali.errors import UsageError, parameter
from dali.llm import LLM
from dali.replay.explain.clocked import from_clock
from dali.replay.explain.measured import Watch
from dali.replay.explain.slices import LayerStep, explain
from dali.replay.explain.summary import summary
from dali.runtime.journal import Journal
from dali.telemetry import DiskCounters
from dali.units import size

ESTIMATED = "Where a layer lies in its step is estimated."


class Explained:
    """What `llm` does from now on; it answers as ever, bit for bit. UsageError: a GPU, on which nothing is told yet."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._disk = llm.telemetry.disk
        self._journal: Journal | None = None
        self._watch: Watch | None = None
        executor = llm.executor
        if executor is None:
            self._watch = llm.loop.watch = Watch(llm.telemetry, llm.loaded.top_k)
        elif isinstance(executor.device, SimDevice):
            self._journal = executor.keep_journal(executor.device.clock)
        else:
            raise UsageError(
                f"What experts do on {executor.device.name} cannot be explained yet.",
                f"Give {parameter('device')} sim:PROFILE, or leave it out.",
            )

    @property
    def times(self) -> str:
        return "measured" if self._journal is None else "modelled"

    @property
    def about(self) -> str:
        """What is to be known of times that are not only measured."""
        return ESTIMATED if self._journal is None else ""

    def steps(self) -> Sequence[LayerStep]:
        if self._journal is not None:
            return explain(self._journal, self._llm.loaded.top_k, from_clock)
        assert self._watch is not None
        return list(self._watch.steps)

    def table(self) -> str:
        """A summary that fits a screen."""
        begun = self._watch.begun if self._watch is not None else self._journal.steps if self._journal else 0
        told = summary(self.steps(), begun, self.times)
        disk = self._llm.telemetry.disk
        return told if disk is None or self._disk is None else f"{told}\n\n{_of_disk(disk.since(self._disk))}"


def _of_disk(disk: DiskCounters) -> str:
    return (
        f"Disk: {100 * disk.hit_rate:.0f} % of experts were in RAM, {disk.reads:,} reads of {size(disk.read_bytes)}, "
        f"{disk.stalled_seconds:.2f} s waited"
    )
