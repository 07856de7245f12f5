"""Vocabularies as llguidance has them: what tokens spell, control tokens, and spaces that decoders drop."""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from dali.engine.constraint.grammars import Grammars
from dali.engine.constraint.shape import Shape
from dali.engine.constraint.vocabulary import Vocabulary
from dali.engine.text.answer import answer_grammar
from dali.engine.text.structure import Plain
from dali.engine.text.text import Text
from scripted import scripted_tokenizer


@pytest.fixture(scope="module")
def sentencepiece():
    """As Llama's and Mixtral's: spaces are part of words, and unknown letters are bytes."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁{",
        "{",
        "}",
        '"',
        "a",
        "▁a",
        ":",
        "▁",
    ]
    backend = Tokenizer(
        models.BPE(
            {word: id for id, word in enumerate(words)},
            [],
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in words[:3]])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def test_a_space_that_the_decoder_drops_may_begin_an_answer(sentencepiece):
    ids = sentencepiece.get_vocab()
    grammars = Grammars(sentencepiece, frozenset([ids["</s>"]]))
    assert grammars.vocabulary.drops_space
    held = grammars.constraint(answer_grammar(grammars.vocabulary, Shape({"type": "object"}), Plain()))
    answer = []
    # A dog in bytes; a letter both as a token and as a byte.
    dog = [f"<0x{byte:02X}>" for byte in "🐕".encode()]
    for name in ("▁{", '"', "a", "▁a", "<0x61>", *dog, '"', ":", '"', '"', "}"):
        allowed = held.allowed(answer, len(sentencepiece)).tolist()
        assert ids[name] in allowed, name
        assert not {ids["<unk>"], ids["<s>"], ids["</s>"]} & {*allowed}
        answer.append(ids[name])
    assert held.over(answer)
    text = Text(sentencepiece)
    for token in answer:
        text.push(token)
    text.finish()
    assert json.loads("".join(piece.text for piece in text.pieces)) == {"a aa🐕": ""}


def test_control_tokens_are_no_text_and_others_are():
    tokenizer = scripted_tokenizer(special=("<|endoftext|>", "<|x|>"), added=("<think>",))
    vocabulary = Vocabulary(tokenizer, frozenset([tokenizer.eos_token_id]))
    assert {*vocabulary.controls} == {"<|endoftext|>", "<|x|>"}
    assert vocabulary.ends == {"<|endoftext|>"}
    assert {*vocabulary.marks} >= {"<think>"}
    assert not vocabulary.drops_space
    library = vocabulary.library
    assert library.is_special_token(vocabulary.controls["<|x|>"])
    assert not library.is_special_token(vocabulary.marks["<think>"])
    assert library.decode_bytes(tokenizer("Naïve 🐕")["input_ids"]) == "Naïve 🐕".encode()


def test_a_model_without_an_end_of_its_own_ends_with_the_grammar():
    tokenizer = scripted_tokenizer()
    grammars = Grammars(tokenizer, frozenset())
    held = grammars.constraint(answer_grammar(grammars.vocabulary, Shape({"const": 5}), Plain()))
    five = tokenizer("5")["input_ids"]
    assert held.allowed((), len(tokenizer)).tolist() == five
    assert held.over(five) or not len(held.allowed(five, len(tokenizer)))
