"""`dali doctor`: verdicts, exit codes and refusals, of models here and on a hub, and without torch."""

from __future__ import annotations

import errno
import json
import lzma
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import huggingface_hub
import pytest

from dali.doctor import before, here, remote
from dali.doctor.before import before_download
from dali.errors import DaliError, UsageError
from dali.hardware import own
from dali.hardware.profile import DISK, load
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


def test_experts_that_ram_has_room_for_want_no_more_of_it(run, dali_tiny, monkeypatch):
    monkeypatch.setattr("dali.doctor.plan.IMPORTED", 0)
    _, some = told(run, str(dali_tiny), "--ram", "148MiB", "--quant", "f32")
    _, all_of_them = told(run, str(dali_tiny), "--ram", "600MiB", "--quant", "f32")
    (way,) = all_of_them["ways"]
    assert (way["where"], way["slots"]) == ("disk", way["all_slots"])
    assert [any("GiB of RAM" in line for line in found["more"]) for found in (some, all_of_them)] == [
        True,
        False,
    ]
    (choice,) = [choice for choice in all_of_them["plan"] if choice["what"] == "experts are"]
    assert choice["value"] == "in RAM, read from disk as they are wanted"


@pytest.mark.parametrize(
    ("plain", "how", "other"),
    [
        (2.7e9, "past the page cache", "the same by plain reading"),
        (6e9, "through the page cache", "the same by reads past the page cache"),
    ],
)
def test_both_ways_of_reading_are_told_where_experts_are_read(run, dali_tiny, monkeypatch, plain, how, other):
    monkeypatch.setattr("dali.doctor.plan.IMPORTED", 0)
    profile = measured(plain_bandwidth=plain, plain_queue_depth=2.0)
    monkeypatch.setattr(here, "own_profile", lambda: (profile, []))
    code, found = told(run, str(dali_tiny), "--ram", "148MiB", "--quant", "f32")
    assert code == 0
    assert [way["name"] for way in found["ways"]] == ["experts on disk, on the CPU", other]
    chosen, beside = found["ways"]
    assert chosen["decode"]["expected"] > beside["decode"]["expected"]
    (choice,) = [choice for choice in found["plan"] if choice["what"] == "experts are read"]
    assert (choice["value"], choice["origin"]) == (
        how,
        f"measured: plain reading is {plain / 3e9:.2f} times as fast",
    )


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


def test_both_parts_of_an_accelerators_memory_are_told_and_who_has_split_it(run, dali_tiny):
    code, found = told(run, str(dali_tiny), "--device", "sim:paper", "--parallel", "3")
    way, origins = found["ways"][0], {choice["what"]: choice["origin"] for choice in found["plan"]}
    assert (code, way["sequences"], way["resident"]) == (0, 3, 160)
    assert way["kept"] == 3 * way["states"]  # of one context, where nothing has a window
    assert way["vram"] == way["experts"]
    assert origins["its memory"] == "modelled time"
    _, out, _ = run("doctor", str(dali_tiny), "--device", "sim:paper", "--vram", "1MiB")
    assert re.search(r"on sim:paper, keys and values +1\.0 MiB +a context of 512 tokens", out)
    assert "1.0 MiB for experts, 1.0 MiB for a context" in out
    _, found = told(run, str(dali_tiny), "--device", "sim:paper", "--vram", "1MiB")
    assert {choice["what"]: choice["origin"] for choice in found["plan"]}["its memory"] == "--vram"


def test_beside_an_accelerator_the_cpu_alone_is_told(run, dali_tiny):
    code, found = told(run, str(dali_tiny), "--device", "sim:paper")
    names = [way["name"] for way in found["ways"]]
    assert (code, names) == (0, ["experts in RAM and on sim:paper", "all in RAM, on paper's CPU alone"])
    assert found["ways"][1]["resident"] == 0


def test_a_row_says_which_flags_ask_for_it(run, dali_tiny):
    arguments = str(dali_tiny), "--device", "sim:rtx3060-desktop", "--vram", "200KiB", "--system", "fiddler"
    _, found = told(run, *arguments)
    rows = {way["policy"]: (way["taken"], way["flags"]) for way in found["ways"]}
    assert rows["by fiddler"] == (True, "")
    assert rows["misses on the CPU"] == (False, "--assign cpu_on_miss --prefetch none, no --system")
    assert rows[""] == (False, "--device cpu, no --vram, no --system")
    assert {choice["what"]: choice["origin"] for choice in found["plan"]}["its policy"] == "--system"
    _, out, _ = run("doctor", *arguments)
    assert re.search(r"^by fiddler +taken +\d", out, re.MULTILINE)
    assert re.search(r"^misses by the faster way +no --system +\d", out, re.MULTILINE)


def test_all_experts_on_the_cpu_are_left_out_by_their_own_flag(run, dali_tiny):
    arguments = str(dali_tiny), "--device", "sim:rtx3060-desktop", "--vram", "200KiB", "--cpu-moe"
    _, found = told(run, *arguments)
    rows = {way["policy"]: way["flags"] for way in found["ways"]}
    assert rows["misses copied"] == "--assign gpu, no --cpu-moe"
    assert rows["misses by the faster way"] == "no --cpu-moe"
    assert {choice["what"]: choice["origin"] for choice in found["plan"]}["its policy"] == "--cpu-moe"


def test_a_budget_that_has_all_experts_shortens_the_context_and_says_no_more_of_it(run, dali_tiny):
    code, found = told(run, str(dali_tiny), "--ram", "1200MiB")
    way = found["ways"][0]
    assert (code, way["where"], way["slots"], found["notes"]) == (0, "RAM", 0, [])
    assert {choice["what"]: choice["origin"] for choice in found["plan"]}["experts are"] == "--ram"


def test_whole_layers_without_room_are_a_usage_error(refused, dali_tiny):
    code, problem, fix = refused(
        "doctor", str(dali_tiny), "--device", "sim:rtx3060-desktop", "--vram", "1MiB", "--n-cpu-moe", "0"
    )
    assert code == 2
    assert problem.startswith("--n-cpu-moe 0 leaves 8 MoE layers")
    assert "--n-cpu-moe" in fix


def test_a_load_of_unknown_speed_is_not_told_as_0(run, dali_tiny, tmp_path):
    figures = json.loads(load("paper").to_json())
    figures["figures"] = {name: one for name, one in figures["figures"].items() if name not in DISK}
    (tmp_path / "bare.json").write_text(json.dumps(figures))
    arguments = str(dali_tiny), "--device", f"sim:{tmp_path / 'bare.json'}"
    _, found = told(run, *arguments)
    assert found["ways"][0]["load"] is None
    _, out, _ = run("doctor", *arguments)
    assert "not known" in out


@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts": 0},
        {"num_experts_per_tok": 2000},
        {"num_hidden_layers": 10**9},
        {"model_type": "nobodys"},
        {"quantization_config": {"quant_method": "gptq"}},
    ],
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
    folder = hub.root / "org/gguf"
    (folder / "mmproj-F16.gguf").write_bytes(b"GGUF")
    (folder / "B-UD-Q8_0.gguf").write_bytes(b"GGUF")  # which Q8_0 does not lead to
    code, found = told(run, "org/gguf:Q8_0")
    assert code == 0
    sizes = {row["name"]: row["nbytes"] for row in found["quants"]}
    assert sizes == {each: (folder / f"A-{each}.gguf").stat().st_size for each in ("Q4_K_M", "Q8_0")}
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


def test_shards_that_no_index_lists_are_refused_before_they_are_downloaded(hub):
    folder = hub.root / TINY
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    with pytest.raises(UsageError, match=r"it has no model\.safetensors\.index\.json"):
        before_download(LoadOptions(), print)(Remote(TINY))


def test_where_nothing_can_be_written_headers_are_not_looked_at(refused, hub, monkeypatch):
    def none(**options):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryDirectory", none)
    code, problem, fix = refused("doctor", TINY)
    assert code == 1
    assert "No usable temporary directory" in problem
    assert "TMPDIR" in fix
    before_download(LoadOptions(), print)(Remote(TINY))  # the download goes on


def test_nothing_is_written_beside_the_folder_that_it_is_given(hub, monkeypatch, tmp_path):
    """Whatever the hub calls its files."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    listed = [SimpleNamespace(rfilename=name, size=100) for name in ("../../Q8_0.gguf", "/tmp/x-Q8_0.gguf")]
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **b: SimpleNamespace(siblings=listed))
    with pytest.raises(UsageError, match="no GGUF file for 'Q8_0'"):
        remote.fetch_outline(Remote("org/gguf", "Q8_0"), folder)


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


def test_a_hub_that_is_waited_for_is_named(monkeypatch):
    said, told = [], Event()

    def unreachable(remote, folder):
        assert told.wait(10)
        raise DaliError("The hub cannot be reached.", "Never mind.")

    monkeypatch.setattr(before, "MOMENT", 0.01)
    monkeypatch.setattr("dali.doctor.examine.read_remote", unreachable)
    before_download(LoadOptions(), lambda message: (said.append(message), told.set()))(Remote(TINY))
    assert said == [f"Waiting for the Hugging Face hub, which has not told yet what {TINY} is made of."]


@pytest.mark.parametrize(("free", "what"), [(2**20, "Hugging Face cache"), (16 * 2**20, "dali's cache")])
def test_a_download_without_room_is_refused(hub, monkeypatch, free, what):
    """The files take 14 MiB and something, their packed experts 6."""
    monkeypatch.setattr(here, "free_disk", lambda folder: free)
    with pytest.raises(DaliError, match=what):
        before_download(LoadOptions(), print)(Remote(TINY))


def test_torch_is_not_imported(dali_tiny, tmp_path):
    (tmp_path / "a.gguf").write_bytes(converted("qwen3moe"))
    program = (
        "import sys; from dali.cli.main import main; "
        f"main(['doctor', {str(dali_tiny)!r}, '--device', 'sim:paper', '--vram', '1MiB']); "
        f"main(['doctor', {str(tmp_path / 'a.gguf')!r}]); main(['doctor']); "
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


def test_a_flag_about_a_model_is_refused_without_one(refused):
    code, problem, _ = refused("doctor", "-c", "4096")
    assert code == 2
    assert problem.endswith("so no --ctx-size.")
