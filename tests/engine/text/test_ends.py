"""What ends an answer, whatever a tokenizer's files say of it."""

from __future__ import annotations

import pytest

from dali.engine.text.ends import end_ids, take_for_control, turn_end
from scripted import CHATML, CHATML_TOKENS, HARMONY, HARMONY_TOKENS, scripted_tokenizer


def ends(tokenizer) -> set[str]:
    return set(tokenizer.convert_ids_to_tokens(list(end_ids(tokenizer))))


def test_known_ends_and_the_templates_own():
    assert ends(scripted_tokenizer()) == {"<|endoftext|>", "<|im_end|>"}
    own = CHATML.replace("<|im_end|>", "<|eot|>")
    assert ends(scripted_tokenizer(special=("<|endoftext|>", "<|eot|>"), template=own)) == {
        "<|endoftext|>",
        "<|eot|>",
    }
    assert ends(scripted_tokenizer(special=("<|endoftext|>", "<|eot|>"))) == {"<|endoftext|>"}


def test_a_harmony_answer_goes_on_after_a_messages_end():
    tokenizer = scripted_tokenizer(special=HARMONY_TOKENS, template=HARMONY)
    assert ends(tokenizer) == {"<|endoftext|>", "<|return|>", "<|call|>"}


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (None, None),
        (CHATML, "<|im_end|>"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", None),
        ("{% for m in messages %}{{ m.content }} and so on{% endfor %}", None),
        ("{{ raise_exception('no') }}", None),
        ("Hello<|im_end|>", None),
        (CHATML + "{% if not add_generation_prompt %}<|im_start|>{% endif %}", "<|im_end|>"),
    ],
)
def test_the_token_that_a_template_writes_after_an_answer(template, end):
    assert turn_end(scripted_tokenizer(template=template)) == end


@pytest.mark.parametrize("kind", ["words", "added"])
def test_a_token_that_is_used_as_control_counts_as_such(kind):
    tokenizer = scripted_tokenizer(special=CHATML_TOKENS[:1], **{kind: CHATML_TOKENS[1:]})
    wrong = (
        ["<|im_end|>", "<|im_start|>"] if kind == "words" else ["<|im_end|>"]
    )  # an added one is no letters
    assert take_for_control(tokenizer) == wrong
    assert take_for_control(tokenizer) == []
    assert "<|im_end|>" in ends(tokenizer)
    said = [{"role": "user", "content": "Hi"}]
    ids = tokenizer.apply_chat_template(said, return_dict=False)
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() in ("user\nHi", "<|im_start|>user\nHi")
    assert ids[-2] == tokenizer.get_vocab()["<|im_end|>"]


def test_tokens_that_are_as_they_should_be_are_left_alone():
    tools = CHATML + "{% if tools %}<tool_call><|tool|>{% endif %}"  # one is text, one no token at all
    assert take_for_control(scripted_tokenizer(added=("<tool_call>",), template=tools)) == []
    assert take_for_control(scripted_tokenizer(template=None)) == []
