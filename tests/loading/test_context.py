"""What a model's files say of its context, without torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dali.errors import UsageError
from dali.loading.context import check_context
from dali.options import LoadOptions
from gguf_models import gguf_model, save_gguf


def directory(path: Path, config: object) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(("asked", "fits"), [(None, True), (2, True), (64, True), (1, False), (65, False)])
def test_a_directory(tmp_path, asked, fits):
    model = directory(tmp_path / "tiny", {"max_position_embeddings": 64})
    if fits:
        check_context(model, LoadOptions(ctx_size=asked))
        return
    with pytest.raises(UsageError) as error:
        check_context(model, LoadOptions(ctx_size=asked))
    assert error.value.problem == f"The context size {asked} is out of range."
    assert error.value.fix == "tiny takes 2 to 64 tokens."


def test_a_gguf_file_of_several(tmp_path):
    save_gguf(gguf_model("gpt_oss"), tmp_path / "m.gguf", shards=20)
    first = next(tmp_path.glob("*-00001-of-*"))
    check_context(first, LoadOptions(ctx_size=2))
    with pytest.raises(UsageError, match=r"^The context size 1000000000 is out of range.\nm takes 2 to"):
        check_context(first, LoadOptions(ctx_size=10**9))


@pytest.mark.parametrize("config", [{}, [], {"max_position_embeddings": None}, {"text_config": {}}])
def test_what_the_files_do_not_say_is_left_to_loading(tmp_path, config):
    check_context(directory(tmp_path / "tiny", config), LoadOptions(ctx_size=10**9))


def test_damaged_files_are_left_to_loading(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    check_context(tmp_path / "m.gguf", LoadOptions(ctx_size=10**9))
    check_context(tmp_path, LoadOptions(ctx_size=10**9))
    (tmp_path / "config.json").write_text("{")
    check_context(tmp_path, LoadOptions(ctx_size=10**9))
