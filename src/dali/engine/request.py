"""What was asked of the engine: fixed when a sequence begins."""

from __future__ import annotations

from dataclasses import dataclass, field

from dali.engine.sampling import SamplingParams


@dataclass(frozen=True)
class Request:
    """A prompt, token ids, and how to go on from it.

    `limit`: tokens, prompt included, at which the answer ends with "length"; `eos`: tokens that end it with "stop";
    `borders`: how many of the prompt's tokens each message ends behind, where later prompts may part from it.
    """

    prompt: tuple[int, ...]
    limit: int
    params: SamplingParams = field(default_factory=SamplingParams)
    eos: frozenset[int] = frozenset()
    borders: tuple[int, ...] = ()
