"""One answer: streamed to the terminal or to a pipe as it comes, then summed up in a line."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from dali.cli.chat.reading import Reading
from dali.cli.chat.screen import Screen
from dali.units import size

if TYPE_CHECKING:
    from dali.engine.sequence import Sequence
    from dali.llm import LLM
    from dali.telemetry import DiskCounters


class Answer:
    """What `llm` says in `sequence`, which has not begun."""

    def __init__(self, llm: LLM, sequence: Sequence) -> None:
        self.text = ""  # shown so far, without reasoning
        self._llm = llm
        self._sequence = sequence
        self._bytes_before = llm.telemetry.total().expert_bytes
        self._tiers_before = llm.telemetry.tiers
        self._disk_before = llm.telemetry.disk
        self._on_cpu_before = llm.telemetry.steps_on_cpu

    def stream(self) -> None:
        """Show the answer. Ctrl-C, like any exception, ends it; `text` is what was shown."""
        screen = Screen()
        reading = Reading(self._sequence)
        try:
            with closing(self._llm.loop.stream(self._sequence)) as pieces:
                for piece in pieces:
                    reading.end()
                    self.text += piece.text
                    screen.show(piece)
        finally:
            reading.end()
            screen.end()

    @property
    def filled_context(self) -> bool:
        return len(self._sequence.tokens) >= self._llm.ctx_size

    def summary(self, long: bool = False) -> str:
        """Tokens, tokens per second as measured, and a system that was named; `long`: also memory, and what was read of it."""
        sequence = self._sequence
        cached = f" ({sequence.cached_tokens} cached)" if sequence.cached_tokens else ""
        parts = [f"{sequence.prompt_tokens} prompt{cached} + {len(sequence.generated)} answer tokens"]
        prefilled = min(sequence.computed, sequence.prompt_tokens) - sequence.cached_tokens
        decoded = sequence.computed - sequence.prompt_tokens
        phases = (
            ("prefill", prefilled, sequence.prefill_seconds),
            ("decode", decoded, sequence.decode_seconds),
        )
        rates = [f"{phase} {tokens / seconds:,.1f}" for phase, tokens, seconds in phases if seconds]
        if rates:
            modelled = " (modelled)" if self._llm.telemetry.modelled else ""
            parts.append(f"{', '.join(rates)} tok/s{modelled}")
        if (disk := self._llm.telemetry.disk) is not None and self._disk_before is not None:
            parts.append(self._from_disk(disk.since(self._disk_before), long))
        if sequence.drafted:
            parts.append(f"drafted {sequence.drafted}, {sequence.accepted} accepted")
        if long:
            parts += self._details()
        accelerated = self._llm.accelerated
        if accelerated is not None and accelerated.system is not None:
            lossy = ", ".join(accelerated.lossy.get("parts", ()))
            parts.append(f"{accelerated.system}, lossy: {lossy}" if lossy else accelerated.system)
        if converted := self._llm.loaded.conversions:
            parts.append(f"converted: {', '.join(converted)}")
        if self.filled_context:
            parts.append("context full")
        return " | ".join(parts)

    def _details(self) -> list[str]:
        """What the answer took: memory, reads, and what an accelerator did."""
        sequence, llm = self._sequence, self._llm
        in_q8 = " in q8" if llm.engine.in_q8 else ""
        dense, experts, kv = (n / 2**20 for n in (llm.dense_bytes, llm.expert_bytes, sequence.state.nbytes))
        total = llm.telemetry.total()
        parts = [
            f"dense {dense:.1f}, experts {experts:.1f} ({llm.format_name}), KV {kv:.1f} MiB{in_q8}",
            f"{size(total.expert_bytes - self._bytes_before)} of experts read",
        ]
        if llm.executor is not None:
            on_cpu = 100 * total.cpu / max(total.lookups, 1)
            parts.append(
                f"hits {100 * total.hit_rate:.0f} %, CPU {on_cpu:.0f} %, {size(total.link_bytes)} copied"
            )
            if on_cpu := llm.telemetry.steps_on_cpu - self._on_cpu_before:
                parts.append(f"{on_cpu} steps all on the CPU")
            prefetched = (total.prefetch_used, total.prefetch_late, total.prefetch_wasted)
            if any(prefetched):
                parts.append("prefetched {} used, {} late, {} wasted".format(*prefetched))
        return parts

    def _from_disk(self, disk: DiskCounters, long: bool) -> str:
        """Where the answer found its experts, and what it took of those on disk."""
        telemetry = self._llm.telemetry
        found = {tier: count - self._tiers_before[tier] for tier, count in telemetry.tiers.items()}
        shares = {tier: 100 * count / max(sum(found.values()), 1) for tier, count in found.items()}
        there = (
            ""
            if self._llm.executor is None
            else f"{shares['accelerator']:.0f} % of experts on the accelerator, "
        )
        told = (
            f"{there}{shares['ram']:.0f} % {'' if there else 'of experts '}in RAM, {size(disk.read_bytes)} read"
            f"{' through the page cache' if disk.plainly else ''}, "
            f"{disk.stalled_seconds:.1f} s waited for the disk{' (modelled)' if telemetry.modelled else ''}"
        )
        if not long:
            return told
        ahead = f"read ahead {disk.ahead_used} used, {disk.ahead_late} late, {disk.ahead_wasted} wasted"
        share = 100 * disk.plain_reads / max(disk.reads, 1)
        plainly = f", {share:.0f} % of them through the page cache" if disk.plain_reads else ""
        return f"{told}, {disk.queue_depth:.1f} reads at a time{plainly}, {ahead}"
