"""What a model is asked, and how its answer is held."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dali.cli.flags.kinds import TEXT
from dali.cli.flags.option import SWITCH, Kind, flag
from dali.cli.flags.sampling import Sampling


def _variables(text: str) -> dict[str, Any]:
    variables = json.loads(text)
    if not isinstance(variables, dict):
        raise ValueError
    return variables


JINJA = Kind("JINJA", "a Jinja template or the file that holds one", TEXT.parse)
VARIABLES = Kind("JSON", 'a JSON object, such as {"enable_thinking": false}', _variables)


@dataclass(frozen=True)
class Template:
    """None leaves a choice to the model."""

    chat_template: str | None = flag("prompt", JINJA, "a template, or its file, instead of the model's own")
    chat_template_kwargs: Mapping[str, Any] | None = flag(
        "prompt", VARIABLES, 'variables of the chat template, as {"enable_thinking": false}'
    )


@dataclass(frozen=True)
class Chat(Sampling, Template):
    """None leaves a choice to the model."""

    stop: tuple[str, ...] = flag(
        "answer", TEXT, "end the answer before TEXT; may be repeated", repeatable=True
    )
    system_prompt: str | None = flag(
        "prompt", TEXT, "what the model is told before the first message", "-sys"
    )
    raw: bool = flag("prompt", SWITCH, "give the prompt to the model as it is, without a chat template")

    def sampling(self) -> dict[str, Any]:
        return super().sampling() | {"stop": self.stop}
