"""A few of the inputs of benchmarks/tools/fuzz_settings.py, which tries thousands."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pytest

from dali.loading.locate import BUNDLED
from gguf_models import gguf_model, save_gguf

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "tools"))
from fuzz_settings import changed_directory, changed_gguf, outcome, split

INPUTS = 25


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))


def test_directories_with_changed_settings_load_or_are_refused(tmp_path):
    found = {}
    for number in range(INPUTS):
        path, done = changed_directory(BUNDLED / "dali-tiny", tmp_path / "tiny", Random(number))
        found[done] = outcome(path)
    assert {done: what for done, what in found.items() if what not in ("answers", "refused")} == {}
    assert len(set(found.values())) == 2


def test_gguf_files_with_changed_metadata_load_or_are_refused(tmp_path):
    content = save_gguf(gguf_model("qwen3_moe"), tmp_path / "m.gguf").read_bytes()
    found = {}
    for number in range(2 * INPUTS):
        path, done = changed_gguf(content, tmp_path / "m.gguf", Random(number))
        found[done] = outcome(path)
    assert {done: what for done, what in found.items() if what not in ("answers", "refused")} == {}
    assert len(set(found.values())) == 2


def test_what_is_taken_apart_is_the_file(tmp_path):
    content = save_gguf(gguf_model("qwen3_moe"), tmp_path / "m.gguf").read_bytes()
    head, keys, (table, data) = split(content)
    entries = b"".join(len(name).to_bytes(8, "little") + name + value for name, value in keys)
    whole = head + entries + table
    assert whole + b"\0" * (-len(whole) % 32) + data == content
    assert dict(keys)[b"general.architecture"].endswith(b"qwen3moe")
