"""What an answer is divided by, found in a tokenizer and a template."""

from __future__ import annotations

import pytest

from dali.engine.text.structure import Plain, structure_of
from dali.engine.text.text import Text
from scripted import HARMONY, HARMONY_TOKENS, scripted_tokenizer

HI = [{"role": "user", "content": "Hi, what is <think>?"}]
QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENS = QWEN.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
SKIPS = QWEN.replace("assistant\n{% endif", "assistant\n<think>\n\n</think>\n\n{% endif")
LETTERS = {"template": QWEN}
ADDED = {"template": QWEN, "added": ("<think>", "</think>")}
SPECIAL = {
    "template": QWEN,
    "special": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
}


def divided(tokenizer, said: str, prompt=None) -> tuple[str, str]:
    """What is shown of an answer whose tokens are those of `said`."""
    prompt = prompt or tokenizer.apply_chat_template(HI, add_generation_prompt=True, return_dict=False)
    text = Text(tokenizer, structure=structure_of(tokenizer, prompt))
    assert not any(text.push(token) for token in tokenizer(said)["input_ids"])
    text.finish()
    return "".join(piece.reasoning for piece in text.pieces), "".join(piece.text for piece in text.pieces)


@pytest.mark.parametrize("kind", [LETTERS, ADDED, SPECIAL], ids=["letters", "added", "special"])
@pytest.mark.parametrize(
    ("template", "said", "expected"),
    [
        (QWEN, "<think>\nHm.\n</think>\n\nHi!", ("Hm.", "Hi!")),
        (QWEN, "Hi!", ("", "Hi!")),
        (OPENS, "Hm.\n</think>\n\nHi!", ("Hm.", "Hi!")),
        (SKIPS, "Hi!", ("", "Hi!")),
    ],
)
def test_tags_are_found_whatever_their_tokens_are(kind, template, said, expected):
    assert divided(scripted_tokenizer(**kind | {"template": template}), said) == expected


@pytest.mark.parametrize(
    ("template", "said", "expected"),
    [
        ("<|turn>model\n", "<|channel>thought\nHm.<channel|>Hi!", ("Hm.", "Hi!")),
        ("<|turn>model\n<|channel>thought\n<channel|>", "Hi!", ("", "Hi!")),
        ("<|turn>model\n<|channel>thought\n", "Hm.<channel|>Hi<channel|>!", ("Hm.", "Hi!")),
    ],
)
def test_a_tag_may_be_a_token_and_letters(template, said, expected):
    special = ("<|endoftext|>", "<|turn>", "<turn|>", "<|channel>", "<channel|>")
    assert divided(scripted_tokenizer(special=special, template=template), said) == expected


def test_channels_are_found_by_their_tokens():
    tokenizer = scripted_tokenizer(special=HARMONY_TOKENS, template=HARMONY)
    said = "<|channel|>analysis<|message|>Hm: <x|.<|end|><|start|>assistant<|channel|>final<|message|>Hi!"
    assert divided(tokenizer, said) == ("Hm: <x|.", "Hi!")
    begun = tokenizer("<|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>final<|message|>I")[
        "input_ids"
    ]
    assert divided(tokenizer, " am", begun) == ("", " am")
    assert divided(tokenizer, "Hi!", tokenizer("Hi")["input_ids"]) == ("", "Hi!")  # another template's prompt


def test_a_model_without_any_speaks_plainly():
    tokenizer = scripted_tokenizer()
    assert isinstance(structure_of(tokenizer, [5]), Plain)
    assert divided(tokenizer, "<think>a</think>b") == ("", "<think>a</think>b")
