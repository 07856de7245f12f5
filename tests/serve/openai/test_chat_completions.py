"""/v1/chat/completions, asked by OpenAI's own client and by hand."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

import dali
from scripted import CHATML, save_scripted
from served import STORY, Served, served

CHAT = "/v1/chat/completions"
GREEDY = {"messages": STORY, "temperature": 0, "max_tokens": 24}
HI = [{"role": "user", "content": "Hi"}]
THINKS = {
    "script": ["<think>", "Hm", ".", "</think>", "H", "Ã", "©", "llo", " y", "ou", " STO", "P", " on", "<|im_end|>"],
    "added": ("<think>", "</think>"),
    "template": CHATML.replace("m['content']", "(m['content'] or '').split('</think>')[-1]") + "{# enable_thinking #}",
}  # fmt: skip


@pytest.fixture(scope="module")
def alone(tiny: Served) -> dali.Completion:
    """What the model says where nobody else asks."""
    return tiny.llm.chat(STORY, temperature=0, max_tokens=24)


@pytest.fixture(scope="module")
def thinks(tmp_path_factory: pytest.TempPathFactory):
    """A model whose answer is written down: reasoning, a character of two tokens, words in pieces."""
    folder = tmp_path_factory.mktemp("thinks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(folder / "cache"))
        with dali.load(str(save_scripted(folder / "model", **THINKS))) as llm, served(llm) as found:
            yield found


def test_the_official_client_gets_what_the_model_says(tiny, alone):
    answer = tiny.openai.chat.completions.create(model="dali-tiny", **GREEDY)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", alone.text)
    assert (choice.finish_reason, choice.index, answer.model) == ("length", 0, "dali-tiny")
    assert answer.usage.prompt_tokens == alone.prompt_tokens
    assert (answer.usage.completion_tokens, answer.usage.total_tokens) == (24, 24 + alone.prompt_tokens)


def test_a_stream_begins_with_the_role_and_ends_with_usage(tiny, alone):
    body = GREEDY | {"stream": True, "stream_options": {"include_usage": True}}
    first, *middle, finish, usage = tiny.openai.chat.completions.create(model="dali-tiny", **body)
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content for chunk in middle) == alone.text
    assert all(chunk.choices[0].finish_reason is None and chunk.usage is None for chunk in middle)
    assert finish.choices[0].finish_reason == "length"
    assert not finish.choices[0].delta.content
    assert usage.choices == []
    assert usage.usage.completion_tokens == 24


def test_timings_are_llama_cpps(tiny):
    tiny.post(CHAT, GREEDY)
    _, answer = tiny.post(CHAT, GREEDY)
    timings, usage = answer["timings"], answer["usage"]
    assert timings["predicted_n"] == 24
    assert timings["prompt_n"] + timings["cache_n"] == usage["prompt_tokens"]
    assert timings["cache_n"] == usage["prompt_tokens_details"]["cached_tokens"] > 0
    assert timings["predicted_ms"] > 0
    chunks = tiny.events(CHAT, GREEDY)
    assert [bool(chunk.get("timings")) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_streams_side_by_side_say_what_each_says_alone(tiny):
    asked = [
        [{"role": "user", "content": f"Tell me a story about {who}."}]
        for who in ("a dog", "a cat", "Tom", "rain")
    ]
    expected = [tiny.llm.chat(messages, temperature=0, max_tokens=40).text for messages in asked]

    async def stream(messages):
        said = ""
        async with tiny.async_openai as client:
            chunks = await client.chat.completions.create(
                model="dali-tiny", messages=messages, temperature=0, max_tokens=40, stream=True
            )
            async for chunk in chunks:
                said += chunk.choices[0].delta.content or ""
        return said

    async def all_of_them():
        return await asyncio.gather(*map(stream, asked))

    assert asyncio.run(all_of_them()) == expected


def test_n_choices_have_seeds_of_their_own(tiny):
    sampled = {"messages": STORY, "temperature": 1.5, "max_tokens": 12, "seed": 7}
    _, answer = tiny.post(CHAT, sampled | {"n": 2})
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert texts == [tiny.llm.chat(STORY, temperature=1.5, max_tokens=12, seed=seed).text for seed in (7, 8)]
    assert answer["usage"]["completion_tokens"] == 24
    assert answer["usage"]["prompt_tokens"] == len(tiny.llm.chat_prompt(STORY))
    streamed = ["", ""]
    for chunk in tiny.events(CHAT, sampled | {"n": 2}):
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["delta"].get("content", "")
    assert streamed == texts


def test_log_probabilities_are_the_models_own(tiny, alone):
    _, answer = tiny.post(CHAT, GREEDY | {"max_tokens": 3, "logprobs": True, "top_logprobs": 2})
    found = answer["choices"][0]["logprobs"]["content"]
    expected = tiny.llm.chat(STORY, temperature=0, max_tokens=3, logprobs=2).logprobs
    assert [one["logprob"] for one in found] == [one.logprob for one in expected]
    assert (
        b"".join(bytes(one["bytes"]) for one in found).decode() == answer["choices"][0]["message"]["content"]
    )
    assert [[top["logprob"] for top in one["top_logprobs"]] for one in found] == [
        [logprob for _, logprob in one.top] for one in expected
    ]
    chunks = tiny.events(CHAT, GREEDY | {"max_tokens": 3, "logprobs": True, "top_logprobs": 2})
    streamed = [one for chunk in chunks for one in (chunk["choices"][0]["logprobs"] or {}).get("content", [])]
    assert streamed == found


def test_a_stop_string_ends_the_answer_wherever_chunks_are_cut(tiny, alone):
    word = alone.text[10:22]
    status, answer = tiny.post(CHAT, GREEDY | {"stop": [word, "never said"]})
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == alone.text.partition(word)[0]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_reasoning_comes_apart_and_characters_come_whole(thinks):
    _, answer = thinks.post(CHAT, {"messages": HI, "temperature": 0})
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Héllo you STOP on")
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3  # without the closing tag
    deltas = [
        chunk["choices"][0]["delta"] for chunk in thinks.events(CHAT, {"messages": HI, "temperature": 0})
    ]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [delta["reasoning_content"] for delta in deltas if "reasoning_content" in delta] == ["Hm", "."]
    assert [delta["content"] for delta in deltas[1:] if "content" in delta] == [
        "H", "é", "llo", " y", "ou", " STO", "P", " on",
    ]  # fmt: skip


def test_a_stop_string_over_several_tokens_is_never_shown(thinks):
    body = {"messages": HI, "temperature": 0, "stop": " STOP"}
    deltas = [chunk["choices"][0]["delta"] for chunk in thinks.events(CHAT, body)]
    assert "".join(delta.get("content", "") for delta in deltas) == "Héllo you"


def test_reasoning_that_uses_up_the_limit_leaves_no_content(thinks):
    _, answer = thinks.post(CHAT, {"messages": HI, "temperature": 0, "max_completion_tokens": 2})
    choice = answer["choices"][0]
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ("", "Hm")
    assert choice["finish_reason"] == "length"


def test_reasoning_effort_reaches_the_template_or_is_refused(tiny, thinks):
    for effort in ("none", "high"):
        assert thinks.post(CHAT, {"messages": HI, "max_tokens": 1, "reasoning_effort": effort})[0] == 200
    assert tiny.post(CHAT, GREEDY | {"max_tokens": 1, "reasoning_effort": "none"})[0] == 200
    status, answer = tiny.post(CHAT, GREEDY | {"reasoning_effort": "high"})
    assert (status, answer["error"]["param"]) == (400, "reasoning_effort")


def test_variables_of_the_template_are_passed_on_or_refused(thinks):
    body = {"messages": HI, "max_tokens": 1}
    assert thinks.post(CHAT, body | {"chat_template_kwargs": {"enable_thinking": False}})[0] == 200
    status, answer = thinks.post(CHAT, body | {"chat_template_kwargs": {"colour": "red"}})
    assert (status, answer["error"]["code"]) == (400, "unsupported_parameter")
    assert "no variable 'colour'" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", None),
        ("messages", []),
        ("messages", "Hello"),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "wizard", "content": "Hello"}]),
        ("messages", [{"content": "Hello"}]),
        ("messages", ["Hello"]),
        ("messages", [{"role": "user", "content": 7}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]),
        ("max_tokens", -1),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_completion_tokens", "many"),
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 1.5),
        ("top_k", 0.5),
        ("seed", 2**64),
        ("n", 0),
        ("n", 1000),
        ("stop", [1]),
        ("stop", ["x"] * 100),
        ("stream", "yes"),
        ("stream_options", []),
        ("logprobs", 3),
        ("top_logprobs", 5),
        ("presence_penalty", "big"),
        ("repeat_penalty", 0),
        ("logit_bias", {"5": 100}),
        ("functions", [{}]),
        ("response_format", {"type": "xml"}),
        ("modalities", ["audio"]),
        ("reasoning_effort", "extreme"),
        ("chat_template_kwargs", "x"),
        ("model", 5),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_name(tiny, field, value):
    body = json.dumps({"messages": STORY} | {field: value})
    answer = tiny.http.post(CHAT, content=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert field in error["message"] or field in str(error["param"])


def test_what_nobody_knows_passes_and_so_do_values_that_ask_for_nothing(tiny):
    body = GREEDY | {
        "max_tokens": 1, "user": "me", "store": False, "metadata": None, "nonsense": [1], "tools": [], "stop": [],
        "logit_bias": {}, "response_format": {"type": "text"}, "top_k": -1, "seed": -1, "frequency_penalty": 0.5,
    }  # fmt: skip
    assert tiny.post(CHAT, body)[0] == 200
    assert tiny.post(CHAT, GREEDY | {"max_tokens": 10**30, "stop": "."})[0] == 200


def test_a_prompt_that_is_too_long_is_told_as_programs_know_it(tiny):
    long = "dog " * 2000
    body = {"messages": [{"role": "user", "content": long}]}
    for path, given in (
        (CHAT, body),
        ("/v1/completions", {"prompt": long}),
        ("/v1/responses", {"input": long}),
    ):
        status, answer = tiny.post(path, given)
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        assert answer["error"]["param"] in given
    with pytest.raises(openai.BadRequestError):
        tiny.openai.chat.completions.create(model="dali-tiny", **body, stream=True)


def test_another_model_is_not_found(tiny):
    status, answer = tiny.post(CHAT, GREEDY | {"model": "gpt-99"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


def test_a_developer_speaks_as_the_system_does(tiny):
    body = {"messages": [{"role": "developer", "content": "Be kind."}, *STORY], "max_tokens": 1}
    assert tiny.post(CHAT, body)[0] == 200


def test_a_model_without_a_chat_template_says_so(tiny, monkeypatch):
    monkeypatch.setattr(tiny.llm.tokenizer, "chat_template", None)
    status, answer = tiny.post(CHAT, GREEDY)
    assert (status, "has no chat template" in answer["error"]["message"]) == (400, True)
    assert tiny.http.get("/props").json()["chat_template"] == ""
    assert tiny.post("/v1/completions", {"prompt": "Once", "max_tokens": 1})[0] == 200
