"""What single tokens spell."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from dali.engine.text.token_bytes import all_token_bytes, token_bytes

TEXT = "Naïve 狗 said: “wow”  🐕‍🦺\n\tØ"


@pytest.fixture(scope="module")
def tokenizer(dali_tiny):
    return AutoTokenizer.from_pretrained(dali_tiny)


def test_the_bytes_of_tokens_joined_are_the_texts(tokenizer):
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    spelt = [token_bytes(tokenizer, id) for id in ids]
    assert b"".join(spelt) == TEXT.encode()
    assert any(not _is_text(one) for one in spelt), "no token is a part of a character"


def test_control_tokens_spell_themselves_and_what_is_no_token_nothing(tokenizer):
    assert token_bytes(tokenizer, tokenizer.eos_token_id) == tokenizer.eos_token.encode()
    assert token_bytes(tokenizer, 10**6) == b""


def test_all_at_once_are_as_one_by_one(tokenizer):
    count = len(tokenizer) + 3
    assert all_token_bytes(tokenizer, count) == [token_bytes(tokenizer, id) for id in range(count)]


def _is_text(spelt: bytes) -> bool:
    try:
        spelt.decode()
    except UnicodeDecodeError:
        return False
    return True


class SentencePiece:
    """A tokenizer of that kind, as far as it is asked."""

    names = ("▁dog", "<0xC3>", "s")

    def convert_ids_to_tokens(self, id):
        return self.names[id]

    def decode(self, ids, **_):
        return "".join(self.names[id] for id in ids).replace("▁", " ").removeprefix(" ")


@pytest.mark.parametrize(("id", "spelt"), [*enumerate([b" dog", b"\xc3", b"s"])])
def test_sentence_pieces_keep_their_space(id, spelt):
    assert token_bytes(SentencePiece(), id) == spelt
