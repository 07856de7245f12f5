"""A model that calls a tool, and says something else when it has the result, all written down beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import dali
from scripted import CHATML_TOKENS, save_scripted
from served import Served, served

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.reasoning_content or '' }}{{ m.content }}"
    '{% for c in m.tool_calls or [] %}<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if messages[-1].role == 'tool' %}<|told|>{% endif %}{% endif %}"
    "{# enable_thinking #}"
)
BEFORE = ["<think>", "Hm", ".", "</think>", "I", " look", ".\n", "<tool_call>"]
CALL = ('\n{"name": "wea', 'ther", "arguments": {"ci', 'ty": "Par', 'is"', "}}\n")
AFTER = ["</tool_call>", "<|im_end|>", "<|told|>", "It", " rains", "!", "<|endoftext|>"]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
QUESTION = "Will it rain in Paris?"


@contextmanager
def calling_model(
    folder: Path, call: tuple[str, ...] = CALL, template: str = TEMPLATE, **options: Any
) -> Iterator[Served]:
    """Served. It says `I look.` and calls weather(city="Paris"), or what the tokens of `call` say; after a result it says
    `It rains!`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(folder / "cache"))
        saved = save_scripted(
            folder / "model",
            [*BEFORE, *call, *AFTER],
            template=template,
            special=(*CHATML_TOKENS, "<|told|>"),
            added=("<think>", "</think>", "<tool_call>", "</tool_call>"),
        )
        with dali.load(str(saved)) as llm, served(llm, **options) as found:
            yield found
