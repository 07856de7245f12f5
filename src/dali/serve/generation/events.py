"""What comes of an ask, as every protocol renders it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dali.errors import DaliError

if TYPE_CHECKING:
    from dali.engine.logprobs import TokenLogprob


@dataclass(frozen=True, slots=True)
class Text:
    """Final text of the answer proper."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Final text of what the model says to itself before."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A piece of the answer's call number `index`: the first has `id` and `name`, all add to `arguments`, which is JSON."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


Part = Text | Reasoning | ToolCall


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens. `cached`: of the prompt, that were not computed again; `reasoning`: of the answer; `drafted`: that were guessed, of
    them `accepted`: that were right."""

    prompt: int = 0
    cached: int = 0
    answer: int = 0
    reasoning: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that steps took in which the prompt was read, and in which tokens were chosen; on the device's clock, which for a
    simulated one is `modelled`."""

    prefill: float = 0.0
    decode: float = 0.0
    modelled: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """How a choice ended. `reason`: "stop", "length", "tool_calls", "abort" (cancelled, or the server stops), or "error" with the
    `error`; `stop`: the stop string that was met."""

    reason: str
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    stop: str | None = None
    error: DaliError | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to one choice. `tokens`: those chosen in it, `logprobs` theirs, where they were asked for; a token's
    text may come with a later one. `finish`: with the last delta of the choice."""

    choice: int
    parts: tuple[Part, ...] = ()
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None


@dataclass(slots=True)
class Answer:
    """A whole choice: its deltas joined."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finish = field(default_factory=lambda: Finish("abort"))

    def add(self, delta: Delta) -> None:
        for part in delta.parts:
            if isinstance(part, Text):
                self.text += part.text
            elif isinstance(part, Reasoning):
                self.reasoning += part.text
            elif part.index == len(self.calls):
                self.calls.append(part)
            else:
                call = self.calls[part.index]
                self.calls[part.index] = ToolCall(
                    call.index, call.id, call.name, call.arguments + part.arguments
                )
        self.logprobs += delta.logprobs
        if delta.finish is not None:
            self.finish = delta.finish
