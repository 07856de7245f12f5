from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import dali
from dali.engine.text.detokenizer import Detokenizer

TEXTS = [
    "the cat sat on the mat",
    "été à Zürich",
    "Привет, мир",
    "你好世界 你好",
    "नमस्ते दुनिया",
    "👩‍👩‍👧 😀😁 👍🏽",
    "a\n\n  b",
]
SPECIALS = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = [*dict.fromkeys("▁ehlo wrd你好é,�"), "▁hello", "▁▁", "▁▁▁▁", "ello", "好é"]


def byte_letters() -> list[str]:
    """GPT-2's letter for each byte: printable ones stand for themselves, the others for those from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def shipped() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(Path(dali.__file__).parent / "models" / "dali-tiny")


def byte_level() -> PreTrainedTokenizerBase:
    """As Qwen's and gpt-oss's."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    core.add_tokens(["<tool>", "世界"])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


def llama() -> PreTrainedTokenizerBase:
    """BPE with byte fallback and the decoder of Llama, Mixtral and Phi."""
    vocabulary = [*SPECIALS, *BYTES, *WORDS, "he", "ll", "hell", "hello"]
    core = Tokenizer(
        models.BPE(
            {token: number for number, token in enumerate(vocabulary)},
            [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello"), ("▁", "▁")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(SPECIALS)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


def metaspace() -> PreTrainedTokenizerBase:
    """Unigram with byte fallback, whose decoder drops every leading space of the first token."""
    vocabulary = [(token, -1.0 - number / 100) for number, token in enumerate([*SPECIALS, *BYTES, *WORDS])]
    core = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    core.add_special_tokens(SPECIALS)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


load = cache(lambda build: build())
ALL = [shipped, byte_level, llama, metaspace]
every_tokenizer = pytest.mark.parametrize("build", ALL)
# Any id, special and unknown ones too, and often the single bytes, where characters are split.
numbers = st.lists(st.integers(0, 4200) | st.integers(0, 330), max_size=40)
# Whole characters, their beginnings, their ends and bytes that belong to none.
FRAGMENTS = [*map(str.encode, "Aé你😀"), b"\xf0\x9f\x98", b"\xf0\x9f", b"\xe4", b"\x80", b"\xff"]
broken_texts = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map(b"".join)


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def single_bytes(tokenizer: PreTrainedTokenizerBase, data: bytes) -> list[int]:
    letters = BYTES if "<0x00>" in tokenizer.get_vocab() else byte_letters()
    return tokenizer.convert_tokens_to_ids([letters[byte] for byte in data])


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    stream = Detokenizer(tokenizer)
    return [*map(stream.push, ids), stream.flush()]


@every_tokenizer
@settings(deadline=None)
@given(ids=numbers)
def test_any_ids_give_decodes_text(build, ids: list[int]) -> None:
    tokenizer = load(build)
    assert "".join(pieces(tokenizer, ids)) == decode(tokenizer, ids)


@every_tokenizer
@settings(deadline=None)
@given(data=broken_texts, at=st.integers(0, 40), between=numbers)
def test_broken_characters_are_replaced_as_decode_does(
    build, data: bytes, at: int, between: list[int]
) -> None:
    tokenizer = load(build)
    ids = single_bytes(tokenizer, data)
    ids[at:at] = between[:3]
    assert "".join(pieces(tokenizer, ids)) == decode(tokenizer, ids)


@every_tokenizer
@settings(deadline=None)
@given(
    text=st.text(max_size=30)
    | st.lists(st.sampled_from([*TEXTS, "hello", " ", "😀"]), max_size=4).map("".join)
)
def test_text_comes_back_in_whole_characters(build, text: str) -> None:
    tokenizer = load(build)
    ids = tokenizer.encode(text, add_special_tokens=False)
    parts = pieces(tokenizer, ids)
    assert "".join(parts) == decode(tokenizer, ids)
    if "�" not in decode(tokenizer, ids):
        assert not any("�" in part for part in parts)


@pytest.mark.parametrize("build", [shipped, byte_level])
@settings(deadline=None)
@given(ids=numbers)
def test_byte_level_holds_back_one_unfinished_character(build, ids: list[int]) -> None:
    tokenizer = load(build)
    stream, given_out = Detokenizer(tokenizer), ""
    for count, token_id in enumerate(ids, 1):
        given_out += stream.push(token_id)
        assert given_out == decode(tokenizer, ids[:count]).removesuffix("�")


@pytest.mark.parametrize("build", [llama, metaspace])
@settings(deadline=None)
@given(ids=numbers)
def test_byte_fallback_holds_back_one_run_of_bytes(build, ids: list[int]) -> None:
    tokenizer = load(build)
    stream, given_out = Detokenizer(tokenizer), ""
    for count, token_id in enumerate(ids, 1):
        given_out += stream.push(token_id)
        if tokenizer.convert_ids_to_tokens(token_id) not in [*BYTES, *SPECIALS, None]:
            assert given_out == decode(tokenizer, ids[:count]).removesuffix("�")


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["▁hello", "▁", "▁hello"], ["hello", " ", " hello", ""]),
        (["▁", "▁hello"], ["", " hello", ""]),
        (["<s>", "▁hello", "</s>", "▁hello"], ["", "hello", "", " hello", ""]),
        (["<0xF0>", "<0x9F>", "</s>", "<0x98>", "<0x80>", "w"], ["", "", "", "", "", "😀w", ""]),
        (["w", "<0xE4>", "<0xBD>", "<0xA0>"], ["w", "", "", "", "你"]),
        (["<0xE4>", "<0xBD>", "<0xA0>", "<0xFF>", "w"], ["", "", "", "", "����w", ""]),
    ],
)
def test_stories_of_byte_fallback(tokens: list[str], expected: list[str]) -> None:
    tokenizer = load(llama)
    assert pieces(tokenizer, tokenizer.convert_tokens_to_ids(tokens)) == expected


def test_stories_of_byte_level() -> None:
    tokenizer = load(shipped)
    assert pieces(tokenizer, single_bytes(tokenizer, "é😀".encode())) == ["", "é", "", "", "", "😀", ""]
    assert pieces(tokenizer, single_bytes(tokenizer, b"\xff\xff\xff")) == ["", "�", "�", "�"]
    assert pieces(tokenizer, single_bytes(tokenizer, b"\xe4\xbdA")) == ["", "", "�A", ""]


class Counting:
    """Counts the tokens that are decoded."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.decoded = tokenizer, 0

    def decode(self, ids: list[int], **flags: bool) -> str:
        self.decoded += len(ids)
        return self.tokenizer.decode(ids, **flags)

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return self.tokenizer.convert_ids_to_tokens(token_id)


@every_tokenizer
@pytest.mark.parametrize("length", [100, 1000])
@pytest.mark.parametrize("first", [3, 150, 300])
def test_work_per_token_is_bounded(build, length: int, first: int) -> None:
    """The same token over and over: a special or letter, a byte (never a whole character), a word."""
    counting = Counting(load(build))
    pieces(counting, [first] * length)
    assert counting.decoded <= 12 * length
