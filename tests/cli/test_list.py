"""`dali list`: what it finds, and what it says of each."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from dali.kernels import native
from dali.loading import safetensors as load
from families import random_model, save_model
from gguf_models import gguf_model, save_gguf


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder without GGUF files, which would be listed."""
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of models in a cache of this test's own."""
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path))
    return tmp_path / "models"


@pytest.fixture
def listed(run):
    def listed() -> dict[str, dict[str, object]]:
        code, out, _ = run("list", "--json")
        assert code == 0
        return {entry["name"]: entry for entry in json.loads(out)}

    return listed


def write_config(directory: Path, **config: object) -> None:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))


def test_the_model_that_ships_inside_runs(run, models):
    code, out, err = run("list")
    assert (code, err) == (
        0,
        "Models elsewhere run by their path, a GGUF file or a directory: `dali run PATH`.\n",
    )
    heading, *rows = (line.split() for line in out.splitlines())
    assert heading == ["NAME", "FAMILY", "EXPERTS", "TOP-K", "MOE", "LAYERS", "SIZE", "RUNS"]
    assert rows == [["dali-tiny", "qwen3_moe", "20", "4", "8", "14.5", "MiB", "yes,", "as", "w8"]]


def test_what_runs_and_what_does_not_and_why(listed, models):
    save_model(random_model("deepseek_v2"), models / "b-runs")
    cut = save_model(random_model("olmoe"), models / "cut", max_shard_size="50KB")
    next(cut.glob("model-00002*")).unlink()
    small = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "vocab_size": 97}
    AutoModelForCausalLM.from_config(LlamaConfig(**small)).save_pretrained(models / "dense")
    write_config(models / "gptq", model_type="llama", quantization_config={"quant_method": "gptq"}, **small)
    write_config(models / "image", model_type="clip")
    write_config(models / "newer", model_type="unheard-of")
    (models / "empty").mkdir()
    write_config(models / "damaged")
    (models / "damaged" / "config.json").write_text("{")
    jamba = {"num_attention_heads": 2, "num_key_value_heads": 2, "mamba_d_state": 2}
    write_config(models / "stateful", model_type="jamba", **small | jamba | {"num_hidden_layers": 2})

    found = listed()
    assert list(found) == sorted(found)
    assert {name: entry["obstacle"] for name, entry in found.items()} == {
        "b-runs": None,
        "cut": "incomplete download",
        "dali-tiny": None,
        "damaged": "unreadable config.json",
        "dense": "dense model",
        "empty": "no config.json",
        "gptq": "quantized checkpoint",
        "image": "not a language model",
        "newer": "unknown model type",
        "stateful": "unsupported layers",
    }
    runs = found["b-runs"]
    assert (runs["runs"], runs["family"], runs["quant"]) == (True, "deepseek_v2", "w8")
    assert (runs["experts"], runs["top_k"], runs["moe_layers"]) == (8, 3, 2)  # its first layer is dense
    assert runs["bytes"] == sum(file.stat().st_size for file in (models / "b-runs").iterdir())
    assert "model-00002-of-" in found["cut"]["problem"]
    assert found["newer"]["family"] == "unheard-of"


def test_no_weights_are_read(listed, models, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", None)
    monkeypatch.setattr(load, "load_dense", None)
    save_model(random_model("mixtral"), models / "mixtral")
    weights = models / "mixtral" / "model.safetensors"
    size = weights.stat().st_size
    header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    with weights.open("r+b") as file:
        file.truncate(header)
        file.truncate(size)  # all zeros now: only its header is there to be read
    assert listed()["mixtral"]["runs"] is True


@pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
def test_a_model_whose_experts_are_beyond_the_memory_runs_from_disk(listed, models, monkeypatch):
    assert listed()["dali-tiny"]["from_disk"] is False
    monkeypatch.setattr("dali.loading.budget.available_ram", lambda: 2**20)
    entry = listed()["dali-tiny"]
    assert (entry["runs"], entry["quant"], entry["from_disk"]) == (True, "w4", True)


def test_a_model_beyond_the_memory_does_not_run(listed, models, monkeypatch):
    monkeypatch.setattr("dali.loading.budget.available_ram", lambda: 2**20)
    monkeypatch.setattr("dali.loading.on_disk.available_ram", lambda: 2**20)
    entry = listed()["dali-tiny"]
    assert (entry["runs"], entry["obstacle"]) == (False, "too large for the free memory")


def test_the_hugging_face_cache_is_searched(listed, models):
    hub = Path(huggingface_hub.constants.HF_HUB_CACHE)
    commit = "0123456789abcdef0123456789abcdef01234567"
    for name, reference in (
        ("models--org--tiny", "main"),
        ("models--org--old", "v1"),
        ("datasets--org--data", "main"),
    ):
        save_model(random_model("qwen2_moe"), hub / name / "snapshots" / commit)
        (hub / name / "refs").mkdir()
        (hub / name / "refs" / reference).write_text(commit)
    found = listed()
    assert list(found) == ["dali-tiny", "org/tiny"]
    assert found["org/tiny"]["runs"] is True
    assert found["org/tiny"]["family"] == "qwen2_moe"


def test_gguf_files(listed, models):
    hub = Path(huggingface_hub.constants.HF_HUB_CACHE) / "models--org--tiny-gguf"
    snapshot = hub / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    for folder in (models / "here", snapshot, hub / "refs"):
        folder.mkdir(parents=True)
    (hub / "refs" / "main").write_text(snapshot.name)
    save_gguf(gguf_model("gpt_oss"), models / "here" / "m.gguf", shards=20)
    save_gguf(gguf_model("olmoe"), snapshot / "tiny-Q8_0.gguf")
    save_gguf(gguf_model("olmoe"), snapshot / "tiny-Q4_0.gguf")
    shutil.copy(snapshot / "tiny-Q8_0.gguf", snapshot / "tiny-UD-Q8_0.gguf")
    (snapshot / "config.json").write_text("{}")  # which makes no model of its own
    with (snapshot / "tiny-Q4_0.gguf").open("r+b") as file:
        file.truncate(10_000)
    found = listed()
    first = next((models / "here").glob("*-00001-of-*"))
    assert list(found) == sorted(
        ["dali-tiny", str(first), *(f"org/tiny-gguf:{quant}" for quant in ("Q8_0", "Q4_0", "tiny-UD-Q8_0"))]
    )
    runs = found["org/tiny-gguf:Q8_0"]
    assert (runs["runs"], runs["family"], runs["quant"]) == (True, "olmoe", "f32")
    assert (runs["experts"], runs["top_k"], runs["moe_layers"]) == (8, 3, 3)
    assert found[str(first)]["bytes"] == sum(file.stat().st_size for file in first.parent.iterdir())
    broken = found["org/tiny-gguf:Q4_0"]
    assert (broken["runs"], broken["obstacle"]) == (False, "unreadable GGUF file")
    assert "tiny-Q4_0.gguf" in broken["problem"]


def test_gguf_files_of_the_current_folder(listed, models, run, tmp_path, monkeypatch):
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    save_gguf(gguf_model("olmoe"), tmp_path / "here" / "a.gguf")
    save_gguf(gguf_model("gpt_oss"), tmp_path / "here" / "below" / "b.gguf", shards=20)
    first = next(Path("below").glob("*-00001-of-*"))
    found = listed()
    assert list(found) == ["a.gguf", str(first), "dali-tiny"]
    assert all(entry["runs"] for entry in found.values())
    assert run("run", "a.gguf", "hi", "-n", "1", "--raw")[0] == 0  # so it is called


def test_folders_that_may_not_be_looked_into(listed, models, monkeypatch, run):
    (models / "private").mkdir(parents=True)
    listdir = os.listdir

    def refuse(path: object) -> list[str]:
        if "private" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listdir(path)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "listdir", refuse)
    found = listed()
    assert (found["private"]["runs"], found["dali-tiny"]["runs"]) == (False, True)

    def scan(folder: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "hub/private")

    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", scan)
    code, _, err = run("list")
    assert code == 0
    assert "The Hugging Face cache is left out: hub/private cannot be read (Permission denied)." in err


def test_one_model_that_breaks_the_look_leaves_the_others(listed, models, monkeypatch):
    read_config = load.read_config

    def break_on(directory: Path) -> object:
        if directory.name == "odd":
            raise AttributeError("odd")
        return read_config(directory)

    monkeypatch.setattr(load, "read_config", break_on)
    write_config(models / "odd", model_type="odd")
    found = listed()
    assert found["odd"]["runs"] is False
    assert found["dali-tiny"]["runs"] is True
