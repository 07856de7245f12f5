"""`dali doctor`: verdicts, exit codes and refusals, of models here and on a hub, and without torch."""

from __future__ import annotations

import json
import lzma
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest

from dali.doctor import before, here, machine, remote
from dali.doctor.before import before_download
from dali.errors import DaliError
from dali.hardware import own
from dali.hardware.profile import DISK
from dali.loading.locate import Remote
from dali.options import LoadOptions
from hub import Hub, serving
from measured import measured

TESTS = Path(__file__).parents[1]
TINY = "org/tiny"


@pytest.fixture(autouse=True)
def fixed(monkeypatch):
    """A machine whose memory is known, measured once."""
    monkeypatch.setattr(here, "available_ram", lambda: 8 * 2**30)
    monkeypatch.setattr(here, "free_disk", lambda folder: 100 * 2**30)
    monkeypatch.setattr(here, "own_profile", lambda: (measured(), []))


@pytest.fixture
def hub(tmp_path, monkeypatch, dali_tiny):
    root = tmp_path / "repositories"
    shutil.copytree(dali_tiny, root / TINY)
    for name in ("A-Q4_K_M", "A-Q8_0"):
        (root / "org/gguf").mkdir(exist_ok=True)
        (root / "org/gguf" / f"{name}.gguf").write_bytes(converted("qwen3moe"))
    with serving(Hub(root)) as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield hub


def converted(name: str) -> bytes:
    return lzma.decompress((TESTS / "loading" / "gguf" / "converted" / f"{name}.gguf.xz").read_bytes())


def told(run, *arguments):
    code, out, _ = run("doctor", "--json", *arguments)
    return code, json.loads(out)


def test_a_model_here_fits_and_says_who_decided(run, dali_tiny, monkeypatch):
    monkeypatch.setenv("DALI_QUANT", "w4")
    code, found = told(run, str(dali_tiny), "-c", "128", "--threads", "1")
    assert code == 0
    assert found["verdict"] == "FAST"
    origins = {choice["what"]: choice["origin"] for choice in found["plan"]}
    assert origins["experts"] == "DALI_QUANT"
    assert origins["context"] == "--ctx-size"
    assert origins["everything else"] == "model"
    (way,) = found["ways"]
    assert (way["where"], way["format"], way["context"]) == ("RAM", "w4", 128)
    assert way["decode"]["low"] < way["decode"]["expected"] < way["decode"]["high"]


def test_experts_beyond_ram_are_on_disk(run, dali_tiny, monkeypatch):
    monkeypatch.setattr("dali.doctor.plan.IMPORTED", 0)
    code, found = told(run, str(dali_tiny), "--ram", "320MiB", "--quant", "f32")
    way = found["ways"][0]
    assert (code, way["where"]) == (0, "disk")
    assert way["slots"] <= way["all_slots"] == 160


def test_what_has_no_room_is_a_no(run, dali_tiny):
    code, found = told(run, str(dali_tiny), "--ram", "100MiB")
    assert code == 1
    assert found["verdict"] == "NO"
    assert "--ram allows 100.0 MiB" in found["why"]
    assert "--ram" in found["fix"]
    assert not found["fits"]


def test_text_ends_with_where_the_times_are_from(run, dali_tiny):
    code, out, _ = run("doctor", str(dali_tiny), "--device", "sim:paper")
    assert code == 0
    assert "FAST" in out
    assert "Modelled" in out
    assert "sim:paper" in out


@pytest.mark.parametrize(
    "changes",
    [{"num_experts": 0}, {"model_type": "nobodys"}, {"quantization_config": {"quant_method": "gptq"}}],
)
def test_what_loading_refuses_is_refused(run, tmp_path, dali_tiny, changes):
    folder = tmp_path / "model"
    shutil.copytree(dali_tiny, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    if "num_experts" in changes:
        from safetensors.torch import load_file, save_file

        weights = {
            name: one
            for name, one in load_file(folder / "model.safetensors").items()
            if "experts" not in name
        }
        save_file(weights, folder / "model.safetensors")
    code, found = told(run, str(folder))
    assert (code, found["verdict"]) == (1, "NO")
    assert found["fix"]


def test_a_context_that_the_model_cannot_have_is_a_usage_error(refused, dali_tiny):
    code, problem, _ = refused("doctor", str(dali_tiny), "-c", "100000")
    assert code == 2
    assert "100000" in problem


def test_a_model_on_the_hub_is_told_like_one_here(run, hub, dali_tiny):
    _, there = told(run, TINY)
    _, local = told(run, str(dali_tiny))
    assert there.pop("model") == TINY
    local.pop("model")
    assert there == local
    assert hub.sent < 2**20  # of 14 MiB


def test_of_a_repository_every_quantization_is_told(run, hub):
    code, found = told(run, "org/gguf:Q8_0")
    assert code == 0
    assert {row["name"] for row in found["quants"]} == {"Q4_K_M", "Q8_0"}
    _, local = told(run, str(hub.root / "org/gguf/A-Q8_0.gguf"))
    assert local["ways"] == found["ways"]


def test_a_server_without_parts_of_files_is_told_at_once(refused, hub):
    hub.ranges = False
    code, problem, _ = refused("doctor", TINY)
    assert code == 1
    assert "sends no parts of files" in problem


def test_sizes_that_are_lies_are_seen(refused, hub):
    hub.lies["model.safetensors"] = 10**9
    code, problem, _ = refused("doctor", TINY)
    assert code == 1
    assert f"{TINY}/model.safetensors" in problem
    assert "/tmp" not in problem


@pytest.mark.parametrize("name", ["org/none", "org/locked"])
def test_what_is_not_there_or_gated_is_told(refused, hub, name):
    hub.gated.add("org/locked")
    code, problem, fix = refused("doctor", name)
    assert code == 1
    assert name in problem
    assert "hf auth login" in fix


def test_a_slow_server_is_not_waited_for(refused, hub, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE", 0.05)
    hub.delay = 0.3
    code, _, fix = refused("doctor", TINY)
    assert code == 1
    assert "connection" in fix


def test_offline_nothing_is_asked(refused, hub):
    code, problem, _ = refused("doctor", TINY, "--offline")
    assert (code, hub.asked) == (1, 0)
    assert "offline" in problem


def test_a_download_is_preceded_by_it(refused, hub):
    (hub.root / TINY / "config.json").write_text('{"model_type": "nobodys"}')
    code, problem, _ = refused("run", TINY, "Hello")
    assert code == 1
    assert "nobodys" in problem
    assert hub.sent < 2**20


def test_before_a_download_the_verdict_is_one_line(hub):
    said = []
    before_download(LoadOptions(), said.append)(Remote(TINY))
    (line,) = said
    assert line.startswith(f"{TINY}: FAST")
    assert "to download" in line


@pytest.mark.parametrize("changes", [{"ranges": False}, {"delay": 0.3}])
def test_a_server_that_does_not_tell_does_not_keep_from_downloading(hub, monkeypatch, changes):
    monkeypatch.setattr(remote, "PATIENCE", 0.05)
    for name, value in changes.items():
        setattr(hub, name, value)
    said = []
    before_download(LoadOptions(), said.append)(Remote(TINY))
    assert said == []


@pytest.mark.parametrize(("free", "what"), [(2**20, "Hugging Face cache"), (16 * 2**20, "dali's cache")])
def test_a_download_without_room_is_refused(hub, monkeypatch, free, what):
    """The files take 14 MiB and something, their packed experts 6."""
    monkeypatch.setattr(here, "free_disk", lambda folder: free)
    with pytest.raises(DaliError, match=what):
        before_download(LoadOptions(), print)(Remote(TINY))


def test_the_machine_is_told_with_what_mends_it(run, monkeypatch):
    monkeypatch.setattr(machine, "LOW_DISK", 2**60)
    code, out, _ = run("doctor")
    assert code == 0
    assert "`dali bench hw`" in out
    assert "DALI_CACHE_DIR" in out


def test_models_from_the_hub_are_where_its_library_keeps_them(run, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "mine"))
    assert f"{tmp_path / 'mine'}, " in run("doctor")[1]


def test_a_folder_that_cannot_be_written_is_broken(run, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "file"))
    code, out, _ = run("doctor", "--json")
    assert code == 1
    assert any(row["broken"] and row["fix"] for row in json.loads(out))


def test_torch_is_not_imported(dali_tiny, tmp_path):
    (tmp_path / "a.gguf").write_bytes(converted("qwen3moe"))
    program = (
        "import sys; from dali.cli.main import main; "
        f"main(['doctor', {str(dali_tiny)!r}]); main(['doctor', {str(tmp_path / 'a.gguf')!r}]); main(['doctor']); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_profile_of_this_machine_is_named(run, dali_tiny):
    _, found = told(run, str(dali_tiny))
    assert found["basis"] == own.origin(measured())


def test_a_gpu_that_nobody_measured_is_refused(monkeypatch):
    monkeypatch.setattr(here, "check_gpu", lambda device: None)
    with pytest.raises(DaliError, match="Nobody measured"):
        here.device_of(LoadOptions(device="cuda"), measured())


def test_a_gpu_that_nobody_measured_does_not_keep_from_downloading(hub, monkeypatch):
    """Loading plans by the nearest published profile then."""
    monkeypatch.setattr(before, "check_gpu", lambda device: None)
    said = []
    before_download(LoadOptions(device="cuda"), said.append)(Remote(TINY))
    assert said == []


def test_a_disk_that_nobody_measured_is_a_published_one(monkeypatch):
    mine = measured()
    without = replace(mine, figures={name: one for name, one in mine.figures.items() if name not in DISK})
    monkeypatch.setattr(here, "own_profile", lambda: (without, []))
    assert here.look(LoadOptions()).profile.has_disk
