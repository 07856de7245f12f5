"""Whether a model has a chat template, by its tokenizer's files alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from dali.errors import DaliError, UsageError
from dali.loading.chat_template import check_chat_template
from dali.loading.source import open_source
from gguf_models import gguf_model, rewrite, save_gguf


def tokenizer_of(dali_tiny: Path, folder: Path, **changes: Any) -> Path:
    """A directory with all but the weights of the shipped model; None takes a key out of its tokenizer's configuration."""
    for file in ("tokenizer.json", "config.json"):
        shutil.copy(dali_tiny / file, folder)
    config = json.loads((dali_tiny / "tokenizer_config.json").read_text()) | changes
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    return folder


def test_in_the_configuration_or_in_a_file_of_its_own(dali_tiny, tmp_path):
    check_chat_template(open_source(dali_tiny), "tiny")
    folder = tokenizer_of(dali_tiny, tmp_path, chat_template=None)
    with pytest.raises(UsageError, match=r"^tiny has no chat template\.\n.*--raw"):
        check_chat_template(open_source(folder), "tiny")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "default.jinja").write_text(
        "{{ messages }}"
    )  # seldom: transformers finds it
    check_chat_template(open_source(folder), "tiny")
    shutil.rmtree(folder / "additional_chat_templates")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    check_chat_template(open_source(folder), "tiny")


def test_a_model_that_cannot_be_run_hears_that_first(dali_tiny, tmp_path):
    folder = tokenizer_of(dali_tiny, tmp_path, chat_template=None)
    LlamaConfig(num_hidden_layers=1, hidden_size=32, vocab_size=9).save_pretrained(folder)
    with pytest.raises(DaliError, match="has no routed experts"):
        check_chat_template(open_source(folder), "tiny")
    file = rewrite(
        save_gguf(gguf_model("olmoe"), tmp_path / "m.gguf"),
        {"tokenizer.chat_template": None, "general.architecture": "llama"},
    )
    with pytest.raises(DaliError, match=r"m\.gguf") as error:
        check_chat_template(open_source(file), "tiny")
    assert "template" not in error.value.problem


def test_what_cannot_be_read_is_left_to_loading(tmp_path):
    check_chat_template(open_source(tmp_path), "tiny")


def test_in_a_gguf_file(tmp_path):
    file = save_gguf(gguf_model("olmoe"), tmp_path / "m.gguf")
    check_chat_template(open_source(file), "tiny")
    rewrite(file, {"tokenizer.chat_template": None})
    with pytest.raises(UsageError, match="tiny has no chat template"):
        check_chat_template(open_source(file), "tiny")
