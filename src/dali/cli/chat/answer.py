"""One answer: streamed to stdout as it comes, then summed up in a line."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from dali.cli.terminal import passing_note
from dali.units import size

if TYPE_CHECKING:
    from dali.llm import LLM, Prompt


class Answer:
    """What `llm` says to one prompt. UsageError: the prompt is empty or leaves no room for an answer."""

    def __init__(self, llm: LLM, prompt: Prompt, sampling: dict[str, Any]) -> None:
        self.text = ""  # shown so far
        self._llm = llm
        self._sequence = llm.sequence(prompt, **sampling)
        self._bytes_before = llm.telemetry.total().expert_bytes

    def stream(self) -> None:
        """Show the answer. Ctrl-C, like any exception, ends it; `text` is what was shown."""
        passing_note()
        try:
            with closing(self._llm.loop.stream(self._sequence)) as pieces:
                for piece in pieces:
                    self.text += piece
                    print(piece, end="", flush=True)
        finally:
            if self.text and not self.text.endswith("\n"):
                print(flush=True)

    @property
    def filled_context(self) -> bool:
        return len(self._sequence.tokens) >= self._llm.ctx_size

    def summary(self) -> str:
        """Tokens, tokens per second as measured, memory, and the weights that the experts' work read."""
        sequence, llm = self._sequence, self._llm
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
            modelled = " (modelled)" if llm.telemetry.modelled else ""
            parts.append(f"{', '.join(rates)} tok/s{modelled}")
        dense, experts, kv = (n / 2**20 for n in (llm.dense_bytes, llm.expert_bytes, sequence.state.nbytes))
        parts.append(f"dense {dense:.1f}, experts {experts:.1f} ({llm.format_name}), KV {kv:.1f} MiB")
        total = llm.telemetry.total()
        parts.append(f"{size(total.expert_bytes - self._bytes_before)} of experts read")
        if llm.executor is not None:
            on_cpu = 100 * total.cpu / max(total.lookups, 1)
            parts.append(
                f"hits {100 * total.hit_rate:.0f} %, CPU {on_cpu:.0f} %, {size(total.link_bytes)} copied"
            )
            if llm.accelerated is not None and (system := llm.accelerated.system) is not None:
                lossy = ", ".join(llm.accelerated.lossy.get("parts", ()))
                parts.append(f"{system}, lossy: {lossy}" if lossy else system)
            prefetched = (total.prefetch_used, total.prefetch_late, total.prefetch_wasted)
            if any(prefetched):
                parts.append("prefetched {} used, {} late, {} wasted".format(*prefetched))
        if self.filled_context:
            parts.append("context full")
        return " | ".join(parts)
