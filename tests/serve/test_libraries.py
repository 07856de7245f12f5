"""Libraries that other programs are made of, unmodified: LangChain's, and Vercel's AI SDK.

LangChain's is tested where `pip install langchain-openai` was done; the AI SDK where DALI_AGENTS names DIR/node_modules/.bin,
after `npm install --prefix DIR ai @ai-sdk/openai-compatible zod`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from calling_model import QUESTION
from served import STORY, Served

PROMPT = STORY[0]["content"]
SCRIPT = Path(__file__).parent / "ai_sdk.mjs"


def plain(server: Served, tokens: int) -> Any:
    """What the server says to PROMPT, by no library."""
    return server.post("/v1/chat/completions", {"messages": STORY, "temperature": 0, "max_tokens": tokens})[1]


@pytest.fixture(scope="module")
def langchain():
    return pytest.importorskip(
        "langchain_openai", reason="langchain-openai is not here: install it with pip."
    )


def chat(langchain: Any, server: Served, **more: Any) -> Any:
    return langchain.ChatOpenAI(
        base_url=f"{server.url}/v1",
        api_key="none",
        model=server.llm.name,
        temperature=0,
        max_retries=0,
        **more,
    )


def test_langchain_asks_and_streams(langchain, tiny):
    model = chat(langchain, tiny, max_tokens=24)
    said = plain(tiny, 24)["choices"][0]["message"]["content"]
    answer = model.invoke(PROMPT)
    assert answer.content == said
    assert answer.usage_metadata["output_tokens"] == 24
    assert answer.response_metadata["finish_reason"] == "length"
    pieces = list(model.stream(PROMPT, stream_usage=True))
    assert len(pieces) > 20
    assert "".join(piece.content for piece in pieces) == said
    assert sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata) == 24


def test_langchain_calls_a_tool_and_reads_its_result(langchain, caller):
    from langchain_core.messages import HumanMessage, ToolMessage

    def weather(city: str) -> str:
        """The weather of a city."""
        return "rain"

    model = chat(langchain, caller).bind_tools([weather])
    messages: list[Any] = [HumanMessage(QUESTION)]
    whole = model.invoke(messages)
    streamed = None
    for piece in model.stream(messages):
        streamed = piece if streamed is None else streamed + piece
    for answer in (whole, streamed):
        assert [(call["name"], call["args"]) for call in answer.tool_calls] == [
            ("weather", {"city": "Paris"})
        ]
        assert answer.content.strip() == "I look."
    result = ToolMessage("rain", tool_call_id=whole.tool_calls[0]["id"])
    assert model.invoke([*messages, whole, result]).content == "It rains!"


def ai_sdk(folder: Path, server: Served, prompt: str, tokens: int, *more: str) -> Any:
    modules = Path(os.environ.get("DALI_AGENTS", "/nowhere")).parent
    node = shutil.which("node")
    if node is None or not (modules / "@ai-sdk" / "openai-compatible").is_dir():
        pytest.skip("@ai-sdk/openai-compatible is not here: name its folder by DALI_AGENTS.")
    (folder / "node_modules").symlink_to(modules)
    script = shutil.copy(SCRIPT, folder)
    command = [node, script, f"{server.url}/v1", server.llm.name, prompt, str(tokens), *more]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_ai_sdk_asks_and_streams(tmp_path, tiny):
    found = ai_sdk(tmp_path, tiny, PROMPT, 24)
    said = plain(tiny, 24)["choices"][0]["message"]["content"]
    assert (found["whole"], found["finish"]) == (said, "length")
    assert (found["usage"]["inputTokens"], found["usage"]["outputTokens"]) == (
        plain(tiny, 24)["usage"]["prompt_tokens"],
        24,
    )
    assert len(found["texts"]) > 20
    assert "".join(found["texts"]) == said


def test_the_ai_sdk_calls_a_tool_and_reads_its_result(tmp_path, caller):
    found = ai_sdk(tmp_path, caller, QUESTION, 100, "tools")
    assert found["calls"] == [{"toolName": "weather", "input": {"city": "Paris"}}]
    assert found["results"] == ["rain in Paris"]
    assert found["reasoning"] == "Hm."
    assert found["last"] == "It rains!"
