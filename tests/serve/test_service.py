"""The thread that steps the engine for all: who joins when, who leaves, and what happens when a step fails."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from dali.errors import DaliError
from dali.serve.generation.ask import Ask
from dali.serve.http.errors import ApiError
from dali.serve.service import Service
from served import STORY, served, until

CHAT = "/v1/chat/completions"
LONG = {"temperature": 0, "max_tokens": 400, "ignore_eos": True}


class Steps:
    """The engine's steps, made when the test says so."""

    def __init__(self, loop, patch):
        self.made, self.fails = 0, []
        self._allowed = threading.Semaphore(0)
        self._step = loop.step
        patch.setattr(loop, "step", self._gated, raising=False)

    def _gated(self):
        self._allowed.acquire()
        if self.fails:
            raise self.fails.pop()
        self.made += 1
        self._step()

    def allow(self, count=100_000):
        self._allowed.release(count)


@pytest.fixture
def steps(tiny_llm, monkeypatch):
    steps = Steps(tiny_llm.loop, monkeypatch)
    yield steps
    steps.allow()


@pytest.fixture
def service(tiny_llm, request):
    service = Service(tiny_llm, **getattr(request, "param", {"slots": 4, "queue": 8}))
    yield service
    service.stop(0)


def story(**sampling) -> Ask:
    return Ask(messages=STORY, sampling=LONG | sampling)


def test_whoever_leaves_is_out_before_the_next_step(service, steps):
    async def leave():
        generation = await service.begin(story())
        deltas = generation.deltas()
        steps.allow(3)
        for _ in range(3):
            assert (await anext(deltas)).finish is None
        generation.cancel()
        steps.allow(1)  # the step that may have begun
        while (delta := await anext(deltas)).finish is None:
            pass
        assert delta.finish.reason == "abort"
        assert steps.made <= 4

    asyncio.run(leave())
    until(lambda: service.running == 0)
    assert not service.llm.engine.scheduler.live


def test_whoever_stops_reading_leaves(service):
    async def look():
        generation = await service.begin(story())
        async for delta in generation.deltas():
            if delta:
                break

    asyncio.run(look())
    until(lambda: service.running == 0)


@pytest.mark.parametrize("service", [{"slots": 1, "queue": 8}], indirect=True)
def test_first_come_first_served_and_one_who_waits_can_leave(service, steps):
    ended = []

    async def ask(name, generation):
        (answer,) = await generation.answers()
        ended.append((name, answer.finish.reason))

    async def all_of_them():
        generations = [await service.begin(story(max_tokens=3)) for _ in range(4)]
        assert service.running + service.waiting == 4
        generations[2].cancel()
        steps.allow()
        await asyncio.gather(*(ask(name, generation) for name, generation in enumerate(generations)))

    asyncio.run(all_of_them())
    assert ended[0][0] in (0, 2)
    assert [one for one in ended if one[0] != 2] == [(0, "length"), (1, "length"), (3, "length")]
    assert (2, "abort") in ended


@pytest.mark.parametrize("service", [{"slots": 1, "queue": 2}], indirect=True)
def test_a_full_queue_says_when_to_come_again(service, steps):
    async def fill():
        generations = [await service.begin(story(max_tokens=1)) for _ in range(3)]
        with pytest.raises(ApiError, match="2 answers wait already") as refused:
            await service.begin(story())
        assert refused.value.status == 429
        assert 1 <= int(refused.value.headers["Retry-After"]) <= 60
        steps.allow()
        for generation in generations:
            await generation.answers()

    asyncio.run(fill())


def test_tokens_come_while_a_long_prompt_is_read(service, steps, monkeypatch):
    monkeypatch.setattr(service.llm.engine.scheduler, "step_tokens", 16)
    prompt = service.llm.encode("The dog ran to the big tree. " * 60)[:320]

    async def side_by_side():
        first = await service.begin(story(max_tokens=60))
        steps.allow(5)
        stream = first.deltas()
        for _ in range(5):
            await anext(stream)
        second = await service.begin(Ask(prompts=[prompt], sampling={"max_tokens": 1}))
        steps.allow()
        between, reading = 0, asyncio.create_task(second.answers())
        async for delta in stream:
            between += len(delta.tokens) if not reading.done() else 0
        await reading
        return between

    # Fifteen tokens of the prompt a step beside the one that is decoded.
    assert asyncio.run(side_by_side()) >= 320 // 15


def test_a_step_that_fails_ends_the_last_to_join_and_no_other(service, steps):
    async def fail(error):
        generations = [await service.begin(story(max_tokens=20)) for _ in range(2)]
        streams = [generation.deltas() for generation in generations]
        steps.allow(2)
        await anext(streams[1])  # both have joined
        steps.fails.append(error)
        steps.allow()
        return [[delta async for delta in stream][-1].finish for stream in streams]

    for error, says in (
        (DaliError("No memory.", "Buy some."), "No memory"),
        (ZeroDivisionError("secret"), "ZeroDivision"),
    ):
        first, second = asyncio.run(fail(error))
        assert (first.reason, second.reason) == ("length", "error")
        assert says in second.error.problem
        assert "secret" not in str(second.error)


def test_what_fails_between_steps_ends_all_and_the_thread_goes_on(service, steps, monkeypatch):
    def fail(choices):
        raise KeyError("secret")

    async def ask():
        (answer,) = await (await service.begin(story(max_tokens=2))).answers()
        return answer.finish

    steps.allow()
    with monkeypatch.context() as patch:
        patch.setattr(service.llm.engine, "add", fail)
        finish = asyncio.run(ask())
    assert (finish.reason, "secret" in str(finish.error)) == ("error", False)
    assert service.traffic.finished["error"] == 1
    assert asyncio.run(ask()).reason == "length"


@pytest.mark.parametrize("service", [{"slots": 1, "queue": 8}], indirect=True)
def test_whoever_left_is_told_so_though_the_turn_fails(service, steps, monkeypatch):
    def fail(sequences):
        raise KeyError("secret")

    async def leave():
        generations = [await service.begin(story()) for _ in range(2)]
        stream = generations[0].deltas()
        steps.allow(1)
        await anext(stream)
        monkeypatch.setattr(service.llm.loop, "abort", fail)
        with service._changed:  # both at once
            for generation in generations:
                generation.cancel()
        steps.allow()
        async with asyncio.timeout(20):
            (waited,) = await generations[1].answers()
            return waited.finish.reason, [delta async for delta in stream][-1].finish.reason

    assert asyncio.run(leave()) == ("error", "error")


def test_clients_are_told_of_failures(tiny, steps):
    steps.allow()
    body = {"messages": STORY, "max_tokens": 2}
    steps.fails.append(DaliError("No memory.", "Buy some."))
    status, answer = tiny.post(CHAT, body)
    assert (status, answer["error"]["message"]) == (500, "No memory. Buy some.")
    steps.fails.append(DaliError("No memory.", "Buy some."))
    *_, last, done = tiny.lines(CHAT, body)
    assert '"message":"No memory. Buy some."' in last
    assert done == "data: [DONE]"


def test_a_client_that_leaves_cancels(tiny):
    body = {"messages": STORY} | LONG
    with tiny.http.stream("POST", CHAT, json=body | {"stream": True}) as answer:
        next(answer.iter_lines())
    with pytest.raises(httpx2.ReadTimeout):
        tiny.http.post(CHAT, json=body | {"n": 16}, timeout=0.05)
    until(lambda: tiny.service.running == tiny.service.waiting == 0)
    assert tiny.post(CHAT, {"messages": STORY, "max_tokens": 1})[0] == 200


def test_pings_come_while_nothing_else_does(tiny, steps, monkeypatch):
    monkeypatch.setattr("dali.serve.openai.reply.PAUSE", 0.01)
    body = {"messages": STORY, "max_tokens": 1, "stream": True}
    with tiny.http.stream("POST", CHAT, json=body) as answer:
        lines = (line for line in answer.iter_lines() if line)
        assert '"role":"assistant"' in next(lines)
        assert next(lines) == ": ping"
        assert next(lines) == ": ping"
        steps.allow()
        assert list(lines)[-1] == "data: [DONE]"


def test_stopping_lets_answers_end_as_they_are(tiny_llm, steps):
    with served(tiny_llm) as stopping, ThreadPoolExecutor(2) as threads:
        stream = threads.submit(stopping.lines, CHAT, {"messages": STORY} | LONG)
        whole = threads.submit(stopping.post, CHAT, {"messages": STORY} | LONG)
        until(lambda: stopping.service.running + stopping.service.waiting == 2)
        ending = threading.Thread(target=stopping.service.stop, args=(0.1,))
        ending.start()
        until(lambda: stopping.post(CHAT, {"messages": STORY})[0] == 503)
        while ending.is_alive():
            steps.allow(1)
            time.sleep(0.01)
        *_, error, done = stream.result()
        assert "the server is stopping" in error
        assert done == "data: [DONE]"
        assert whole.result()[0] == 503


def test_stopping_waits_for_answers_that_end_in_time(tiny_llm):
    with served(tiny_llm) as stopping, ThreadPoolExecutor(1) as threads:
        whole = threads.submit(stopping.post, CHAT, {"messages": STORY} | LONG)
        until(lambda: stopping.service.running == 1)
        stopping.service.stop(60)
        status, answer = whole.result()
        assert (status, answer["choices"][0]["finish_reason"]) == (200, "length")


def test_answers_that_no_event_loop_waits_for_are_given_up(service):
    async def begin():
        await service.begin(story())

    asyncio.run(begin())
    until(lambda: service.running == 0 and service.waiting == 0)
