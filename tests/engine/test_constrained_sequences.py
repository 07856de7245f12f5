"""A model's own answers under constraints: each what it would be alone, whoever decodes beside it."""

from __future__ import annotations

import json
from random import Random

import pytest
import torch

import dali
from dali.engine.constraint.shape import Shape
from dali.engine.logprobs import token_logprob
from dali.engine.sampling import Sampler, SamplingParams
from dali.errors import UsageError
from schemas import follows, random_schema

ASKED = [{"role": "user", "content": "Tell me of a little dog."}]
DOG = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 20},
        "tricks": {"type": "array", "items": {"enum": ["sit", "roll", "sing"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm(dali_tiny, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        with dali.load(str(dali_tiny)) as found:
            yield found


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_sampled_follows_the_schema(llm, seed):
    schema = DOG if seed == 0 else bounded(random_schema(Random(seed)))
    answer = llm.chat(
        ASKED, schema=schema, temperature=2, top_k=0, top_p=1, min_p=0, seed=seed, max_tokens=400
    )
    assert answer.finish_reason == "stop"
    assert follows(json.loads(answer.text), schema)


def bounded(schema):
    """Without strings and lists that go on for as long as chance likes."""
    if isinstance(schema, list):
        return [bounded(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    more = {"maxLength": 9} if "string" in schema.get("type", ()) else {}
    more |= {"maxItems": 3} if schema.get("type") == "array" else {}
    if schema.get("type") == "number":
        return {"type": "integer"} | more
    return {**more, **{key: bounded(part) for key, part in schema.items()}}


def test_eight_at_once_are_as_alone(llm):
    shapes = [Shape(bounded(random_schema(Random(seed)))) for seed in range(6)] + [
        None,
        Shape(grammar="start: /[a-z ]{9}/"),
    ]
    sampling = [
        {
            "seed": seed,
            "temperature": 1.5,
            "max_tokens": 40,
            "repeat_penalty": 1.3 if seed % 2 else 1,
            "top_k": 5 * seed,
        }
        for seed in range(8)
    ]

    def sequences():
        return [
            llm.chat_sequence(ASKED, shape=shape, **how) for shape, how in zip(shapes, sampling, strict=True)
        ]

    alone = sequences()
    for one in alone:
        llm.loop.complete([one])
    together = sequences()
    llm.loop.complete(together)
    assert [one.generated for one in together] == [one.generated for one in alone]
    assert [one.finish_reason for one in together] == [one.finish_reason for one in alone]


def test_streamed_or_whole_and_cut_off_it_is_the_same_text(llm):
    how = {"schema": DOG, "temperature": 1, "seed": 3}
    whole = llm.chat(ASKED, max_tokens=200, **how)
    assert follows(json.loads(whole.text), DOG)
    assert "".join(piece.text for piece in llm.chat(ASKED, stream=True, max_tokens=200, **how)) == whole.text
    cut = llm.chat(ASKED, max_tokens=5, **how)
    assert (cut.finish_reason, cut.tokens) == ("length", whole.tokens[:5])
    # The last token of the answer is also the last that it may have: it is whole.
    exact = llm.chat(ASKED, max_tokens=len(whole.tokens), **how)
    assert (exact.finish_reason, exact.text) == ("stop", whole.text)


def test_log_probabilities_are_the_models_own(llm):
    sequence = llm.chat_sequence(ASKED, shape=Shape(DOG), temperature=0, max_tokens=12, logprobs=2)
    rows, advance = [], sequence.advance

    def noted(logits, highest=None):
        rows.append(logits.clone())
        advance(logits, highest)

    sequence.advance = noted
    llm.loop.complete([sequence])
    assert [
        token_logprob(row, token, 2) for row, token in zip(rows, sequence.generated, strict=True)
    ] == sequence.logprobs
    assert any(one.token != one.top[0][0] for one in sequence.logprobs), "the model was held to nothing"


def test_a_prompt_that_another_has_left_is_taken_over(llm):
    how = {"schema": DOG, "temperature": 0, "max_tokens": 30}
    llm.engine.forget()
    first, second = llm.chat(ASKED, **how), llm.chat(ASKED, **how)
    assert (first.text, first.cached_tokens) == (second.text, 0)
    assert second.cached_tokens > 0


def test_what_continues_an_answer_is_not_held_to_a_schema(llm):
    with pytest.raises(UsageError, match="comes last"):
        llm.chat([*ASKED, {"role": "assistant", "content": '{"name": "'}], schema=DOG)


def test_a_schema_that_cannot_be_used_is_refused(llm):
    with pytest.raises(UsageError, match="uniqueItems"):
        llm.chat(ASKED, schema={"type": "array", "uniqueItems": True})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_of_what_may_be_chosen_the_sampler_chooses_as_if_all_else_were_impossible(temperature, penalty):
    chance = torch.Generator().manual_seed(0)
    logits, allowed = torch.randn(500, generator=chance), torch.tensor([3, 50, 51, 400])
    for top_k in (0, 1, 3, 40):
        for seed in range(5):
            params = SamplingParams(temperature=temperature, top_k=top_k, repeat_penalty=penalty, seed=seed)
            told = []

            def highest(most, told=told):
                told.append(most)

            token = Sampler(params).sample(logits, [50, 7], highest, allowed)
            of_these = Sampler(params).sample(logits[allowed], [1], None)
            assert (token, told) == (int(allowed[of_these]), [])
