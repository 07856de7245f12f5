"""Looking on while a model answers: which experts went where, why, and how long it took."""

from __future__ import annotations

from collections.abc import Sequence

from dali.llm import LLM
from dali.replay.explain.clocked import from_clock
from dali.replay.explain.measured import Watch
from dali.replay.explain.slices import LayerStep, explain
from dali.replay.explain.summary import summary
from dali.replay.explain.timed import from_events
from dali.runtime.gpu import GpuExecutor
from dali.runtime.journal import Journal
from dali.telemetry import DiskCounters
from dali.units import size

ESTIMATED = "Where a layer lies in its step is estimated."
PLANNED = "Plans are made in Python, and what another place would take is modelled."


class Explained:
    """What `llm` does from now on; it answers as ever, bit for bit. Over a GPU plans are made in Python from then on, which takes
    longer."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._disk = llm.telemetry.disk
        self._journal: Journal | None = None
        self._watch: Watch | None = None
        if llm.executor is None:
            self._watch = llm.loop.watch = Watch(llm.telemetry, llm.loaded.top_k)
        else:
            self._journal = llm.executor.keep_journal()

    @property
    def slows(self) -> bool:
        """Whether steps take longer for it."""
        return isinstance(self._llm.executor, GpuExecutor)

    @property
    def times(self) -> str:
        return "modelled" if self._llm.telemetry.modelled else "measured"

    @property
    def about(self) -> str:
        """What is to be known of times that are not only measured."""
        if self.times == "modelled":
            return ""
        return ESTIMATED if self._journal is None else PLANNED

    @property
    def begun(self) -> int:
        """Steps since the beginning."""
        kept = self._watch or self._journal
        return 0 if kept is None else kept.begun

    def steps(self, since: int = 0) -> Sequence[LayerStep]:
        """Those that are remembered and came after step `since`, from any thread."""
        with self._llm.loop.between_steps():
            if self._watch is not None:
                return [step for step in self._watch.steps if step.step > since]
            assert self._journal is not None
            notes = self._journal.since(since)
        pieces = from_clock if self.times == "modelled" else from_events
        return explain(notes, self._llm.loaded.top_k, pieces)

    def table(self, since: int = 0) -> str:
        """A summary that fits a screen, of the same steps."""
        told = summary(self.steps(since), self.begun, self.times)
        disk = self._llm.telemetry.disk
        if disk is None or self._disk is None or since:
            return told
        return f"{told}\n\n{_of_disk(disk.since(self._disk))}"


def _of_disk(disk: DiskCounters) -> str:
    return (
        f"Disk: {100 * disk.hit_rate:.0f} % of experts were in RAM, {disk.reads:,} reads took {size(disk.read_bytes)}, "
        f"{disk.stalled_seconds:.2f} s waited"
    )
