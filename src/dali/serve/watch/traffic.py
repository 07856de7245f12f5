"""What the requests of a server came to: counts and times since it began."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import Histogram

if TYPE_CHECKING:
    from dali.serve.generation.events import Delta
    from dali.serve.generation.generation import Choice

FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)  # seconds
EACH = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
ALL = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)
REASONS = ("stop", "length", "tool_calls", "abort", "error")  # why answers end


@dataclass(slots=True)
class _UnderWay:
    """One answer's part in the counts so far."""

    asked: float
    read: int = 0  # tokens of its prompt
    cached: int = 0
    first: float | None = None  # when its first token came


class Traffic:
    """Written by the thread that steps the engine, read by any. Seconds are a watch's, whatever the device."""

    def __init__(self) -> None:
        self.prompt_tokens = 0  # read or kept from before
        self.cached_tokens = 0  # of them, kept from before
        self.generated_tokens = 0
        self.finished = Counter(dict.fromkeys(REASONS, 0))  # answers, by reason
        self.first_token = Histogram(
            "dali_time_to_first_token_seconds",
            "From a request until the first token of its answer.",
            buckets=FIRST,
            registry=None,
        )
        self.each_token = Histogram(
            "dali_time_per_output_token_seconds",
            "Of an answer's tokens after the first, in the mean of each answer.",
            buckets=EACH,
            registry=None,
        )
        self.whole = Histogram(
            "dali_e2e_request_latency_seconds",
            "From a request until its answer has ended.",
            buckets=ALL,
            registry=None,
        )
        self._under_way: dict[Choice, _UnderWay] = {}

    def ask(self, choices: Iterable[Choice], asked: float) -> None:
        """Answers that begin to wait for their turn; `asked`: when, on the monotonic clock."""
        for choice in choices:
            self._under_way[choice] = _UnderWay(asked)

    def drop(self, choice: Choice) -> None:
        """An answer has ended with an error that is not its own."""
        if self._under_way.pop(choice, None) is not None:
            self.finished["error"] += 1

    def note(self, choice: Choice, delta: Delta | None) -> None:
        """What a step did for an answer."""
        sequence, one = choice.sequence, self._under_way[choice]
        if one.read < sequence.prompt_tokens:
            read = max(min(sequence.computed, sequence.prompt_tokens), one.read)
            cached = max(sequence.cached_tokens, one.cached)
            self.prompt_tokens += read - one.read
            self.cached_tokens += cached - one.cached
            one.read, one.cached = read, cached
        if delta is None:
            return
        if delta.tokens:
            self.generated_tokens += len(delta.tokens)
            if one.first is None:
                one.first = time.monotonic()
                self.first_token.observe(one.first - one.asked)
        if delta.finish is not None:
            del self._under_way[choice]
            now = time.monotonic()
            self.finished[delta.finish.reason] += 1
            self.whole.observe(now - one.asked)
            if one.first is not None and delta.finish.usage.answer > 1:
                self.each_token.observe((now - one.first) / (delta.finish.usage.answer - 1))
