"""What a client asks for, whichever protocol it speaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dali.conversation import Message
from dali.engine.constraint.shape import Shape

if TYPE_CHECKING:
    from dali.engine.sequence import Sequence as EngineSequence
    from dali.llm import LLM, Prompt

SEEDS = 2**64


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A conversation to be answered (`messages`), or `prompts` to be continued, each `n` times.

    `template`: variables of the chat template; `tools`: JSON schemas of what the model may call; `calls`: after how many calls of
    them the answer ends, None for any number; `shape`: what the answer has to be; `sampling`: as LLM's methods take it. Choices
    are numbered prompt by prompt; the seed of a prompt's second one is the next number, and so on.
    """

    messages: Sequence[Message] | None = None
    prompts: Sequence[Prompt] = ()
    template: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[dict[str, Any]] | None = None
    calls: int | None = None
    shape: Shape | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    n: int = 1

    @property
    def choices(self) -> int:
        return self.n * (len(self.prompts) if self.messages is None else 1)

    def sequences(self, llm: LLM) -> list[EngineSequence]:
        """Ready for the engine, one a choice; takes as long as the tokenizer does. UsageError: what `llm` refuses."""
        if self.messages is not None:
            return [
                llm.chat_sequence(
                    self.messages,
                    tools=self.tools,
                    template=self.template,
                    calls=self.calls,
                    shape=self.shape,
                    **self._sampling(at),
                )
                for at in range(self.n)
            ]
        return [
            llm.sequence(prompt, self.shape, **self._sampling(at))
            for prompt in self.prompts
            for at in range(self.n)
        ]

    def _sampling(self, choice: int) -> dict[str, Any]:
        seed = self.sampling.get("seed")
        return {**self.sampling, "seed": None if seed is None else (seed + choice) % SEEDS}
