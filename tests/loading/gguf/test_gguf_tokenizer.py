"""Tokenizers from GGUF metadata against the ones they were written from, and splits worked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from dali.errors import DaliError
from dali.loading.gguf.splits import SPLITS
from dali.loading.gguf.tokenizer import end_ids, read_tokenizer
from dali.loading.locate import BUNDLED
from dali.store.gguf.header import Gguf

TEXT = 'Once upon a time,  there were 12345 dogs!\n\nThey said: "Don\'t!" \t naïve café 東京 🙂 <|user|>x'


def header(**changes) -> Gguf:
    metadata = {"general.architecture": "qwen3moe", "qwen3moe.expert_count": 4} | changes
    return Gguf(Path("m.gguf"), {key: value for key, value in metadata.items() if value is not None}, {})


def byte_level(tokens: list[str], **changes) -> Gguf:
    return header(
        **{
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": [],
        }
        | changes
    )


def test_dali_tinys_tokens_come_back():
    import sys

    sys.path.append(str(Path(__file__).parents[3] / "benchmarks" / "tools"))
    import gguf

    from export_gguf import write_tokenizer

    original = AutoTokenizer.from_pretrained(BUNDLED / "dali-tiny")
    written: dict = {}

    class Writer:
        """Takes what the exporter writes."""

        def __getattr__(self, name):
            key = {
                "add_token_merges": "merges",
                "add_tokenizer_pre": "pre",
                "add_tokenizer_model": "model",
            }.get(name)
            key = key or name.removeprefix("add_").replace("token_list", "tokens").replace(
                "token_types", "token_type"
            )
            return lambda value: written.update({key.replace("pad_token_id", "padding_token_id"): value})

    class Config:
        vocab_size = 4096

    write_tokenizer(Writer(), original, Config())
    template = written.pop("chat_template")
    metadata = {f"tokenizer.ggml.{key}": value for key, value in written.items()}
    assert gguf.Keys.Tokenizer.LIST in metadata
    found = read_tokenizer(header(**metadata, **{"tokenizer.chat_template": template}))
    assert found(TEXT)["input_ids"] == original(TEXT)["input_ids"]
    assert found.decode(found(TEXT)["input_ids"]) == TEXT
    assert (found.eos_token_id, found.bos_token_id) == (original.eos_token_id, original.bos_token_id)
    messages = [{"role": "user", "content": "Hi"}]
    asked = {"add_generation_prompt": True, "return_dict": False}
    assert found.apply_chat_template(messages, **asked) == original.apply_chat_template(messages, **asked)
    assert end_ids(header(**metadata)) == [original.eos_token_id]


@pytest.mark.parametrize(
    ("split", "text", "pieces"),
    [
        ("gpt-2", "I'll  pay 123!", ["I", "'ll", " ", " pay", " 123", "!"]),
        ("smollm", "I'll pay 123!", ["I", "'ll", " pay", " ", "1", "2", "3", "!"]),
        ("qwen2", "I'LL pay 123!\n", ["I", "'LL", " pay", " ", "1", "2", "3", "!\n"]),
        ("llama-bpe", "pay 12345", ["pay", " ", "123", "45"]),
        ("gpt-4o", "HelloWorld's 1234", ["Hello", "World's", " ", "123", "4"]),
        ("deepseek-llm", "Hello world, 12345\n\n东京 ab", ["Hello", " world", ",", " ", "12345", "\n", "\n", "东京", " ab"]),
        ("deepseek-coder", "x_1 = 23", ["x", "_", "1", " = ", "2", "3"]),
        ("deepseek-v3", "Hello  1234 .foo 东京か", ["Hello", "  ", "123", "4", " .", "foo", " ", "东京か"]),
        ("tekken", "HelloWorld 12", ["Hello", "World", " ", "1", "2"]),
        ("glm4", "I'LL pay 12345!", ["I", "'LL", " pay", " ", "123", "45", "!"]),
        ("kimi-k2", "OneTwo's 你好ab 1234漢字!\n", ["One", "Two's", " ", "你好", "ab", " ", "123", "4", "漢字", "!\n"]),
        ("afmoe", "1234567 ab 東京か3 .foo", ["1", "234", "567", " ab", " ", "東京か", "3", " .", "foo"]),
        ("cohere2moe", "1234567 HelloWorld", ["1", "234", "567", " Hello", "World"]),
        ("exaone-moe", "한국어 단어 12!\n\nx", ["한국어 단어", " ", "1", "2", "!\n", "\n", "x"]),
        ("laguna", "a  b\n\n 12", ["a", " ", " b", "\n\n", " ", "1", "2"]),
        ("bailingmoe2", "I'll x\n\n1", ["I", "'ll", " x", "\n\n", "1"]),
        ("seed-coder", "a .\n\nb 1", ["a", " .", "\n\n", "b", " ", "1"]),
        ("mellum2", "x12 y", ["x", "1", "2", " y"]),
        ("hunyuan", "pay 12", ["pay", " ", "1", "2"]),
    ],
)  # fmt: skip
def test_splits(split, text, pieces):
    backend = read_tokenizer(byte_level(["a"], **{"tokenizer.ggml.pre": split})).backend_tokenizer
    found = [text[begin:end] for _, (begin, end) in backend.pre_tokenizer.pre_tokenize_str(text)]
    assert found == pieces


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_keeps_all_text(split):
    backend = read_tokenizer(byte_level(["a"], **{"tokenizer.ggml.pre": split})).backend_tokenizer
    spans = [span for _, span in backend.pre_tokenizer.pre_tokenize_str(TEXT)]
    assert "".join(TEXT[begin:end] for begin, end in spans) == TEXT


def test_tokens_around_a_text():
    tokens = ["<s>", "</s>", "a", "b", "ab"]
    ids = {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1}
    assert read_tokenizer(byte_level(tokens, **ids))("ab")["input_ids"] == [2, 3]
    merged = ids | {"tokenizer.ggml.merges": ["a b"]}
    both = merged | {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    assert read_tokenizer(byte_level(tokens, **both))("ab")["input_ids"] == [0, 4, 1]
    llama = merged | {"tokenizer.ggml.pre": "llama-bpe"}
    assert read_tokenizer(byte_level(tokens, **llama))("ab")["input_ids"] == [0, 4]


def test_no_token_lies_beyond_the_vocabulary():
    tokens = ["<｜end▁of▁sentence｜>", "<", "|", "e", "n", "d", "o", "f", "t", "x", ">", "a"]
    types = {"tokenizer.ggml.token_type": [3] + [1] * 11, "tokenizer.ggml.eos_token_id": 0}
    found = read_tokenizer(byte_level(tokens, **types))
    assert found("a<｜end▁of▁sentence｜>a")["input_ids"] == [11, 0, 11]
    assert found.convert_ids_to_tokens(found("<|endoftext|>")["input_ids"]) == list("<|endoftext|>")
    assert (len(found), found.eos_token_id) == (len(tokens), 0)


def test_words_beside_the_merges():
    """Runs of spaces (OLMoE) and letters that spell bytes (DeepSeek), which text is searched for first."""
    tokens = ["a", "Ġ", "ĠĠ", "   ", "ü", "Ã", "¼"]
    words = {"tokenizer.ggml.token_type": [1, 1, 1, 4, 4, 1, 1], "tokenizer.ggml.merges": ["Ġ Ġ"]}
    found = read_tokenizer(byte_level(tokens, **words))
    text = "aü   a  a"
    assert found(text)["input_ids"] == [0, 4, 3, 0, 1, 1, 0]
    assert found.decode(found(text)["input_ids"]) == text
    assert found.decode([5, 6]) == "ü"


def sentencepiece(**changes) -> Gguf:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = {
        "▁": -1.0,
        "a": -2.0,
        "b": -3.0,
        "c": -4.0,
        "ab": -5.0,
        "bc": -4.5,
        "▁a": -6.0,
        "▁abc": -7.0,
        "abc": -8.0,
    }
    return header(
        **{
            "general.architecture": "llama",
            "llama.expert_count": 8,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens + list(pieces),
            "tokenizer.ggml.scores": [0.0] * len(tokens) + list(pieces.values()),
            "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces),
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
        }
        | changes
    )


def test_sentencepiece_merges_by_score():
    tokenizer = read_tokenizer(sentencepiece())
    spelled = tokenizer.convert_ids_to_tokens(tokenizer("abc é")["input_ids"])
    # bc has the best score, then a + bc, then the space before it
    assert spelled == ["<s>", "▁abc", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer("abc é")["input_ids"], skip_special_tokens=True) == "abc é"
    bare = read_tokenizer(sentencepiece(**{"tokenizer.ggml.add_space_prefix": False}))
    assert bare.convert_ids_to_tokens(bare("abc")["input_ids"]) == ["<s>", "abc"]


def test_a_space_before_every_text():
    tokenizer = read_tokenizer(sentencepiece())

    def spelled(text: str) -> list[str]:
        return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])

    assert spelled("ab") == ["▁", "ab"]
    assert spelled(" ab") == ["▁", "▁", "ab"]
    assert spelled("c</s>ab") == ["▁", "c", "</s>", "▁", "ab"]
    assert tokenizer.decode(tokenizer(" ab")["input_ids"], skip_special_tokens=True) == " ab"


def test_phis_tokens_take_the_space_after_them():
    pieces = ["<unk>", "<s>", "</s>", "<|user|>", "▁", "a"]
    tokens = {
        "general.architecture": "phimoe",
        "phimoe.expert_count": 8,
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [0.0] * 4 + [-1.0, -2.0],
        "tokenizer.ggml.token_type": [2, 3, 4, 3, 1, 1],
    }
    tokenizer = read_tokenizer(sentencepiece(**tokens))
    found = tokenizer("<|user|>  a</s> a<s> a", add_special_tokens=False)["input_ids"]
    spelled = ["<|user|>", "▁", "a", "</s>", "▁", "a", "<s>", "▁", "▁", "a"]
    assert tokenizer.convert_ids_to_tokens(found) == spelled


def test_words_that_are_tokens_are_not_merged():
    tokens = ["a", "b", "c", "ab", "bc", "abc"]
    merges = {"tokenizer.ggml.merges": ["b c"], "tokenizer.ggml.add_bos_token": False}
    assert read_tokenizer(byte_level(tokens, **merges))("abc")["input_ids"] == [0, 4]
    for split in ("tekken", "llama-bpe"):
        whole = read_tokenizer(byte_level(tokens, **merges, **{"tokenizer.ggml.pre": split}))
        assert whole("abc")["input_ids"] == [5]


def test_a_merge_that_makes_no_token():
    damaged = byte_level(["a", "b", "ab"], **{"tokenizer.ggml.merges": ["a b", "ab ab"]})
    with pytest.raises(DaliError, match=r"tokenizer is damaged .*'ab ab' makes no token"):
        read_tokenizer(damaged)


def test_tokens_that_the_file_says_end_an_answer():
    named = {f"tokenizer.ggml.{name}_token_id": token for name, token in (("eos", 2), ("eot", 1), ("eom", 2))}
    assert end_ids(byte_level(["a", "<|im_end|>", "</s>"], **named)) == [2, 1]
    assert end_ids(byte_level(["a", "<|im_end|>", "</s>"])) == []


def test_gemmas_pieces_are_merged_in_order_and_across_words():
    pieces = ["<unk>", "<bos>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "a", "b", "\n", "\n\n", "▁a", "▁a▁", "ab"]
    found = read_tokenizer(
        header(
            **{
                "general.architecture": "gemma4",
                "gemma4.expert_count": 8,
                "tokenizer.ggml.model": "gemma4",
                "tokenizer.ggml.tokens": pieces,
                "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 8,
                "tokenizer.ggml.merges": ["▁ a", "▁a ▁", "\n \n", "a b"],
                "tokenizer.ggml.add_bos_token": True,
                "tokenizer.ggml.bos_token_id": 1,
                "tokenizer.ggml.unknown_token_id": 0,
            }
        )
    )
    ids = found("ab a b\n\né")["input_ids"]
    spelled = ["<bos>", "ab", "▁a▁", "b", "\n\n", "<0xC3>", "<0xA9>"]
    assert found.convert_ids_to_tokens(ids) == spelled
    assert found.decode(ids, skip_special_tokens=True) == "ab a b\n\né"
