"""Counts and times of an answer: OpenAI's `usage` and llama.cpp's `timings`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dali.serve.generation.events import Finish


def usage_of(finishes: Sequence[Finish], n: int) -> dict[str, Any]:
    """Of all choices, `n` a prompt, whose tokens count once."""
    asked = [finish.usage for finish in finishes[::n]]
    prompt, cached = sum(one.prompt for one in asked), sum(one.cached for one in asked)
    answer = sum(finish.usage.answer for finish in finishes)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": sum(finish.usage.reasoning for finish in finishes)},
    }


def timings_of(finish: Finish) -> dict[str, Any]:
    """Of one choice, of drafts where there were any; "modelled" where a simulated device's clock measured it."""
    usage, timings = finish.usage, finish.timings
    read = usage.prompt - usage.cached
    modelled = {"modelled": True} if timings.modelled else {}
    drafts = {"draft_n": usage.drafted, "draft_n_accepted": usage.accepted} if usage.drafted else {}
    return {
        "cache_n": usage.cached,
        **_rates("prompt", read, timings.prefill),
        **_rates("predicted", usage.answer, timings.decode),
        **drafts,
        **modelled,
    }


def _rates(name: str, tokens: int, seconds: float) -> dict[str, Any]:
    return {
        f"{name}_n": tokens,
        f"{name}_ms": round(1000 * seconds, 3),
        f"{name}_per_token_ms": round(1000 * seconds / tokens, 3) if tokens else 0.0,
        f"{name}_per_second": round(tokens / seconds, 3) if seconds else 0.0,
    }
