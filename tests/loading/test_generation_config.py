"""generation_config.json in its dialects: what is understood, and what is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import dali
from dali.loading.generation_config import GenerationConfig, read_generation_config
from dali.loading.locate import BUNDLED

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


class Tokenizer:
    """Ten tokens."""

    def get_vocab(self) -> dict[str, int]:
        return {"<|end|>": 3}

    def __len__(self) -> int:
        return 10


def read(tmp_path: Path, said: object) -> GenerationConfig:
    (tmp_path / "generation_config.json").write_text(said if isinstance(said, str) else json.dumps(said))
    return read_generation_config(tmp_path, Tokenizer(), 512)


@pytest.mark.parametrize(
    ("said", "sampling"),
    [
        ({}, {}),
        ({"do_sample": True}, OFF),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20}, OFF | {"temperature": 0.6, "top_k": 20}),
        ({"temperature": 0.6}, OFF | {"temperature": 0.6}),  # as vLLM reads it
        ({"do_sample": None, "min_p": 0.1}, OFF | {"min_p": 0.1}),
        ({"do_sample": False, "temperature": 0.6, "top_p": 7}, {}),
        ({"do_sample": True, "top_k": -1, "top_p": -1, "min_p": -1}, OFF),
        ({"do_sample": True, "temperature": 0, "top_k": 0}, OFF | {"temperature": 0.0}),
        ({"do_sample": True, "temperature": None, "top_p": None}, OFF),
        ({"do_sample": True, "temperature": "0.6", "top_k": 20.0}, OFF | {"temperature": 0.6, "top_k": 20}),
        ({"repetition_penalty": 1.05}, {"repeat_penalty": 1.05, "repeat_last_n": -1}),
        ({"repetition_penalty": 1.0}, {}),
        ({"stop_strings": "###"}, {"stop": ("###",)}),
        ({"stop_strings": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"num_beams": 1, "no_repeat_ngram_size": 0, "typical_p": 1.0, "suppress_tokens": None}, {}),
        ({"max_length": 512, "max_new_tokens": 4096}, {}),  # no more than there is room for
        ({"transformers_version": "9.9", "trust_remote_code": True, "pad_token_id": -1}, {}),
    ],
)
def test_what_is_understood(tmp_path, said, sampling):
    assert read(tmp_path, said) == GenerationConfig(sampling)


@pytest.mark.parametrize(
    ("said", "ends"),
    [
        (3, [3]),
        ([3, 0], [3, 0]),
        ([[0, 3], [3]], [0, 3]),
        ("<|end|>", [3]),
        (["<|end|>", 4], [3, 4]),
        ("5", None),
        (-1, []),
        (None, []),
        ([], []),
        (3.0, [3]),
    ],
)
def test_the_tokens_that_end_an_answer(tmp_path, said, ends):
    found = read(tmp_path, {"eos_token_id": said})
    if ends is None:
        assert found.notes == [
            f"{tmp_path}/generation_config.json is read without what cannot be meant: eos_token_id '5'."
        ]
    else:
        assert found == GenerationConfig({}, ends)


def test_what_cannot_be_meant_or_done_is_told_at_once(tmp_path):
    said = {
        "temperature": "hot",
        "top_k": 1.5,
        "top_p": 95,
        "min_p": True,
        "repetition_penalty": -1,
        "stop_strings": [3],
        "eos_token_id": [3, 10, {}],
        "num_beams": 4,
        "max_new_tokens": 20,
        "no_repeat_ngram_size": 3,
    }
    path = tmp_path / "generation_config.json"
    assert read(tmp_path, said) == GenerationConfig(
        OFF,
        [3],
        [
            f"{path} is read without what cannot be meant: temperature 'hot', top_k 1.5, top_p 95, min_p True, "
            "repetition_penalty -1, stop_strings [3], eos_token_id 10, eos_token_id {}.",
            f"{path} also asks for what dali leaves out: no_repeat_ngram_size 3, num_beams 4, max_new_tokens 20.",
        ],
    )


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"temperature": ' + "[" * 100_000, "\xff"])
def test_a_damaged_file_leaves_the_model_as_it_is(tmp_path, content):
    found = read(tmp_path, content)
    assert (found.sampling, found.ends) == ({}, None)
    assert f"{tmp_path}/generation_config.json cannot be read (" in found.notes[0]


def test_a_model_without_the_file(tmp_path):
    assert read_generation_config(tmp_path, Tokenizer(), 512) == GenerationConfig()


def test_a_model_is_loaded_as_its_file_says(tmp_path):
    model = Path(shutil.copytree(BUNDLED / "dali-tiny", tmp_path / "tiny"))
    said = {"top_k": -1, "repetition_penalty": 1.3, "eos_token_id": [["<|end|>"]], "max_length": 20}
    (model / "generation_config.json").write_text(json.dumps(said))
    config = json.loads((model / "config.json").read_text()) | {
        "eos_token_id": [0, 99999],
        "pad_token_id": 10**6,
    }
    (model / "config.json").write_text(json.dumps(config))
    notes: list[str] = []
    llm = dali.load(model, notify=notes.append)
    assert llm.defaults == OFF | {"repeat_penalty": 1.3, "repeat_last_n": -1}
    assert llm.eos == {0, llm.tokenizer.convert_tokens_to_ids("<|end|>")}
    assert llm.generate("Once", max_tokens=2, seed=0).tokens
    assert notes == [
        f"{model}/config.json is read without what cannot be meant: eos_token_id 99999.",
        f"{model}/generation_config.json also asks for what dali leaves out: max_length 20.",
    ]
