"""What a user of the Python interface meets: completions, streams, chat, limits and refusals."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import dali
from dali.hooks.seam import dali_layer
from dali.llm import LLM


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> LLM:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return dali.load(dtype="float32", quant="f32")


PROMPT = "Once upon a time"


def greedy(llm: LLM, prompt, n: int = 12):
    return llm.generate(prompt, temperature=0, max_tokens=n, ignore_eos=True)


def test_stream_and_generate_agree(llm):
    pieces = list(llm.stream(PROMPT, temperature=0, max_tokens=12, ignore_eos=True))
    assert len(pieces) > 3
    assert "".join(pieces) == greedy(llm, PROMPT).text


def test_sequences_that_join_and_leave_get_the_tokens_they_get_alone(llm):
    prompts = [llm.encode(text) for text in (PROMPT, "The old king", "1 + 1 =", "He said")]
    alone = [greedy(llm, prompt, n).tokens for prompt, n in zip(prompts, (4, 9, 14, 6), strict=True)]
    streams = [
        llm.sequence(p, temperature=0, max_tokens=n, ignore_eos=True)
        for p, n in zip(prompts, (4, 9, 14, 6), strict=True)
    ]
    for late, sequence in enumerate(streams):
        llm.engine.add(sequence)
        for _ in range(late + 1):
            llm.engine.step()
    while llm.engine.step():
        pass
    assert [sequence.generated for sequence in streams] == alone


def test_policies_are_told_whose_tokens_a_step_holds(llm, monkeypatch):
    steps = []
    monkeypatch.setattr(llm.engine, "begin", steps.append)
    first, second = (llm.sequence([5, 6, 7], temperature=0, max_tokens=3, ignore_eos=True) for _ in range(2))
    llm.engine.forget()
    llm.engine.add(first)
    llm.engine.step()
    llm.engine.add(second)
    llm.engine.step()
    llm.engine.step()
    assert [sorted(step.sequences.tolist()) for step in steps] == [
        [first.number] * 3,
        [first.number] + [second.number] * 3,
        [first.number, second.number],
    ]
    told = [dict(zip(step.sequences.tolist(), step.prefill.tolist(), strict=True)) for step in steps]
    assert told[0] == {first.number: True}
    assert told[1] == {first.number: False, second.number: True}
    assert told[2] == {first.number: False, second.number: False}
    while llm.engine.step():
        pass


def test_interleaved_streams_keep_their_pieces(llm):
    expected = [greedy(llm, text).text for text in (PROMPT, "The old king")]
    streams = [
        llm.stream(text, temperature=0, max_tokens=12, ignore_eos=True) for text in (PROMPT, "The old king")
    ]
    texts = ["", ""]
    for turn in range(60):
        texts[turn % 2] += next(streams[turn % 2], "")
    assert texts == expected


def test_a_closed_stream_leaves_the_engine(llm):
    stream = llm.stream(PROMPT, temperature=0, max_tokens=50)
    next(stream)
    stream.close()
    assert llm.engine.scheduler.live == []


def test_the_next_turn_computes_only_what_is_new(llm):
    first = greedy(llm, llm.encode(PROMPT))
    turn = llm.encode(PROMPT) + first.tokens + llm.encode(" and then")
    second = greedy(llm, turn)
    assert second.cached_tokens == len(llm.encode(PROMPT)) + len(first.tokens) - 1
    llm.engine.forget()
    assert greedy(llm, turn).tokens == second.tokens


def test_an_interrupted_step_can_be_tried_again(llm, monkeypatch):
    expected = greedy(llm, PROMPT).tokens
    sequence = llm.sequence(PROMPT, temperature=0, max_tokens=12, ignore_eos=True)
    llm.engine.forget()
    llm.engine.add(sequence)
    for _ in range(3):
        llm.engine.step()
    layer = dali_layer(llm.model.model.layers[5].mlp.experts)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(layer), "__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.engine.step()
    monkeypatch.undo()
    while llm.engine.step():
        pass
    assert sequence.generated == expected


@pytest.mark.parametrize("where", ["sample", "push"])
def test_an_interrupt_after_the_forward_costs_no_sequence_anything(llm, monkeypatch, where):
    expected = [greedy(llm, prompt).tokens for prompt in (PROMPT, PROMPT[:5])]
    sequences = [
        llm.sequence(prompt, temperature=0, max_tokens=12, ignore_eos=True) for prompt in (PROMPT, PROMPT[:5])
    ]
    llm.engine.forget()
    for sequence in sequences:
        llm.engine.add(sequence)
    for _ in range(3):
        llm.engine.step()
    owner = type(sequences[1].sampler) if where == "sample" else type(sequences[1])
    plain = getattr(owner, where)

    def interrupt(self, *given):
        if self in (sequences[1], sequences[1].sampler):
            raise KeyboardInterrupt
        return plain(self, *given)

    monkeypatch.setattr(owner, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.engine.step()
    monkeypatch.undo()
    while llm.engine.step():
        pass
    assert [sequence.generated for sequence in sequences] == expected


def test_seeds_reproduce_and_differ(llm):
    texts = [llm.generate(PROMPT, temperature=1.0, seed=seed, max_tokens=20).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_parameters_may_be_given_as_one_value_with_some_changed_by_name(llm):
    params = dali.SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    assert llm.generate(PROMPT, params=params).tokens == greedy(llm, PROMPT, 5).tokens
    assert llm.generate(PROMPT, params=params, max_tokens=3).tokens == greedy(llm, PROMPT, 3).tokens
    assert llm.sampling_params(params=dali.SamplingParams()).top_k == 0  # not the model's
    with pytest.raises(dali.UsageError, match=r"^params cannot be \{'top_k': 3\}.\n.*SamplingParams"):
        llm.generate(PROMPT, params={"top_k": 3})


def test_an_async_chat_is_the_chat(llm):
    messages = [{"role": "user", "content": "Tell me a story."}]
    expected = llm.chat(messages, temperature=0, max_tokens=10).text

    async def read() -> str:
        return "".join([piece.text async for piece in llm.achat(messages, temperature=0, max_tokens=10)])

    assert asyncio.run(read()) == expected


def test_stop_strings_end_the_text_before_them(llm):
    full = greedy(llm, PROMPT).text
    stop = full.split()[3]
    stopped = llm.generate(PROMPT, temperature=0, max_tokens=12, stop=(stop,), ignore_eos=True)
    assert stopped.text == full[: full.index(stop)]
    assert stopped.finish_reason == "stop"


def test_threads_get_the_answers_they_get_alone(llm):
    prompts = [PROMPT, "Tell me a story about a", "Hello my friend, how"]
    alone = [greedy(llm, prompt, 30).text for prompt in prompts]

    def work(number: int) -> list[str]:
        own = number % 3
        if number < 3:
            return [greedy(llm, prompts[own], 30).text for _ in range(4)]
        return [
            "".join(llm.stream(prompts[own], temperature=0, max_tokens=30, ignore_eos=True)) for _ in range(4)
        ]

    with ThreadPoolExecutor(6) as threads:
        for number, found in enumerate(threads.map(work, range(6))):
            assert found == [alone[number % 3]] * 4
    assert llm.engine.scheduler.live == []


def test_an_async_stream_goes_on_beside_others(llm):
    expected = greedy(llm, PROMPT).text

    async def read() -> str:
        return "".join(
            [piece async for piece in llm.astream(PROMPT, temperature=0, max_tokens=12, ignore_eos=True)]
        )

    async def both() -> list[str]:
        return await asyncio.gather(read(), read())

    assert asyncio.run(both()) == [expected, expected]


def test_a_cancelled_async_stream_leaves_the_engine(llm):
    async def cancelled() -> None:
        async def read() -> None:
            async for _ in llm.astream(PROMPT, temperature=0, max_tokens=400, ignore_eos=True):
                begun.set()

        begun = asyncio.Event()
        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert llm.engine.scheduler.live == []


def test_log_probabilities_are_the_models_own(llm):
    ids = llm.encode(PROMPT)
    found = llm.generate(ids, temperature=0, repeat_penalty=1.5, max_tokens=6, ignore_eos=True, logprobs=3)
    assert found.logprobs is not None
    assert [one.token for one in found.logprobs] == found.tokens
    logits = torch.cat(list(llm.engine.score(llm.sequence([*ids, *found.tokens])))).log_softmax(-1)
    for row, one in zip(logits[len(ids) - 1 :], found.logprobs, strict=False):
        assert one.logprob == pytest.approx(float(row[one.token]), abs=1e-4)
        assert [value for _, value in one.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    assert greedy(llm, ids).logprobs is None


def test_a_closed_model_is_gone_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path))
    with dali.load(quant="w8") as llm:
        stream = llm.stream(PROMPT, temperature=0, ignore_eos=True)
        next(stream)
        held = [weakref.ref(llm.model), weakref.ref(llm.loaded.pool)]
    assert [one() for one in held] == [None, None]
    assert list(stream) == []
    llm.close()
    assert repr(llm) == "<LLM dali-tiny: closed>"
    for use in (
        lambda: llm.generate(PROMPT),
        lambda: llm.chat([{"role": "user", "content": "Hi"}]),
        lambda: llm.ctx_size,
        llm.stats,
    ):
        with pytest.raises(dali.UsageError, match=r"^dali-tiny was closed.\n.*dali.load"):
            use()


def test_chat_uses_the_models_template(llm):
    prompt = llm.chat_prompt([{"role": "user", "content": "Hello"}])
    assert llm.tokenizer.decode(prompt) == "<|user|>\nHello<|end|>\n<|assistant|>\n"
    assert llm.chat([{"role": "user", "content": "Hello"}], temperature=0, max_tokens=8).prompt_tokens == len(
        prompt
    )


def test_the_context_ends_an_answer(llm):
    prompt = llm.encode("word " * 600)[: llm.ctx_size - 3]
    completion = llm.generate(prompt, temperature=0, ignore_eos=True)
    assert (len(completion.tokens), completion.finish_reason) == (3, "length")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "empty"),
        ([5000], "4095"),
        ([-1], "4095"),
        ("word " * 600, "context of 512"),
    ],
)
def test_impossible_prompts_are_refused(llm, prompt, words):
    with pytest.raises(dali.UsageError, match=words):
        llm.generate([prompt])
    assert llm.engine.scheduler.live == []


@pytest.mark.parametrize(
    "prompts",
    [
        None,
        5,
        [None],
        [1.5],
        {"input_ids": [5]},
        [{"role": "user", "content": "Hi"}],
        [[[5]]],
        (n for n in "ab"),
    ],
)
def test_what_is_no_prompt_is_refused(llm, prompts):
    with pytest.raises(dali.UsageError, match=r"^A prompt is text or a list of token ids, not .*\n.*`chat`"):
        llm.generate(prompts)
    with pytest.raises(dali.UsageError, match=r"conversation is a list of messages"):
        llm.chat(5)


def test_token_ids_may_be_an_array(llm):
    ids = llm.encode(PROMPT)
    for same in (torch.tensor(ids), np.array(ids), tuple(ids)):
        assert greedy(llm, same).tokens == greedy(llm, ids).tokens


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", 5),
        ("threads", "2"),
        ("threads", True),
        ("ctx_size", 128.0),
        ("n_cpu_moe", "3"),
        ("seed", None),
        ("device", None),
        ("policy", ["lru"]),
        ("prefetch", False),
        ("vram", 1.5),
    ],
)
def test_a_parameter_of_the_wrong_type_is_named(name, value, monkeypatch):
    monkeypatch.setattr("dali.entry.load_source", lambda *arguments: pytest.fail("loaded"))
    with pytest.raises(dali.UsageError) as error:
        dali.load(**{"device": "sim:paper"} | {name: value})
    assert str(error.value).startswith(f"{name} cannot be {value!r}.\nGive ")


def test_attach_takes_a_model_not_its_name():
    with pytest.raises(dali.UsageError, match=r"^model cannot be 'org/name'.\n.*dali.load takes names"):
        dali.attach("org/name")


def test_unknown_sampling_parameter_is_refused(llm):
    with pytest.raises(dali.UsageError, match=r"'temprature'.*\n.*temperature"):
        llm.generate(PROMPT, temprature=1)


@pytest.mark.parametrize("size", [0, 1, 513])
def test_context_sizes_out_of_range_are_refused(size, tmp_path, monkeypatch):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path))
    with pytest.raises(dali.UsageError, match="2 to 512"):
        dali.load(ctx_size=size)


def test_teacher_forced_scores_equal_the_models(llm):
    tokens = llm.encode("In the beginning God created the heaven and the earth. " * 20)[:200]
    llm.engine.scheduler.step_tokens = 64
    found = torch.cat(list(llm.engine.score(llm.sequence(tokens))))
    llm.engine.scheduler.step_tokens = 512
    whole = torch.cat(list(llm.engine.score(llm.sequence(tokens))))
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


def test_saving_without_experts_is_refused(llm, tmp_path):
    with pytest.raises(dali.DaliError, match="without its experts"):
        llm.model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_sequence_that_fails_leaves_its_neighbours_alone(llm):
    expected = greedy(llm, "The old king").text
    bad = llm.sequence(PROMPT, temperature=0, max_tokens=12)
    good = llm.sequence("The old king", temperature=0, max_tokens=12, ignore_eos=True)
    sample = bad.sampler.sample
    bad.sampler.sample = lambda logits, *rest: sample(logits * float("nan"))
    streams = llm.loop.stream(bad), llm.loop.stream(good)
    with pytest.raises(dali.DaliError, match="logits"):
        next(streams[0])
    assert "".join(piece.text for piece in streams[1]) == expected
    assert bad.finish_reason == "error"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_forked_process_is_told_so_and_ends(tmp_path):
    """In a process of its own, since one that hangs is what is feared."""
    code = """
import os, sys, dali
llm = dali.load(threads=2)
llm.generate("Once", max_tokens=2)
stream = llm.stream("Once", max_tokens=2)
next(stream)
if child := os.fork():
    sys.exit(os.waitpid(child, 0)[1] or len(list(stream)) > 2)
for use in (lambda: llm.generate("Once"), lambda: llm.chat([{"role": "user", "content": "Hi"}]), lambda: next(stream), dali.load):
    try:
        use()
    except dali.DaliError as error:
        print("forked" in error.problem, "spawn" in error.fix)
llm.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=os.environ
    )
    assert done.stdout.splitlines()[-4:] == ["True True"] * 4
    assert (done.returncode, done.stderr) == (0, "")
