"""The variables of the chat template that a request sets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from dali.serve.http.errors import UNSUPPORTED, ApiError
from dali.serve.http.fields import Fields

if TYPE_CHECKING:
    from dali.llm import LLM

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
LEVELS = {"minimal": "low", "xhigh": "high", "max": "high"}  # as templates know them
SWITCHES = ("enable_thinking", "thinking")  # variables that turn reasoning on and off


def template_of(fields: Fields, llm: LLM) -> dict[str, Any]:
    """`chat_template_kwargs`, and what `reasoning_effort` comes to with this model's template."""
    own = fields.mapping("chat_template_kwargs") or {}
    effort = fields.one_of("reasoning_effort", EFFORTS)
    return effort_variables(effort, llm, "reasoning_effort") | own


def effort_variables(effort: str | None, llm: LLM, param: str) -> dict[str, Any]:
    """ApiError where the model cannot be told how much to reason."""
    template = str(llm.tokenizer.chat_template)
    if effort is None:
        return {}
    if _has(template, "reasoning_effort") and effort != "none":
        return {"reasoning_effort": LEVELS.get(effort, effort)}
    for switch in SWITCHES:
        if _has(template, switch):
            return {switch: effort not in ("none", "minimal")}
    if effort == "none" and not _has(template, "reasoning_effort"):
        return {}
    raise ApiError(
        400,
        f"{param} is {effort}, and {llm.name} cannot be told how much to reason. Leave it out.",
        param=param,
        code=UNSUPPORTED,
    )


def thinking_variables(on: bool, llm: LLM) -> dict[str, Any]:
    """What turns reasoning on or off; nothing where this model cannot be told."""
    template = str(llm.tokenizer.chat_template)
    return dict.fromkeys([name for name in SWITCHES if _has(template, name)][:1], on)


def effort_hint(effort: str | None, llm: LLM) -> dict[str, Any]:
    """How much to reason, for templates that have a word for it."""
    known = (
        effort in EFFORTS and effort != "none" and _has(str(llm.tokenizer.chat_template), "reasoning_effort")
    )
    return {"reasoning_effort": LEVELS.get(effort, effort)} if effort and known else {}


def _has(template: str, variable: str) -> bool:
    return re.search(rf"\b{variable}\b", template) is not None
