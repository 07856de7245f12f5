"""`make gpu-check` without a GPU: its arguments, its stages as processes, its report, the profile it writes."""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

from dali.hardware import profile as profiles

HERE = Path(__file__).parents[2] / "benchmarks" / "gpu_check"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    for folder in (HERE, HERE.parent / "tools"):
        monkeypatch.syspath_prepend(str(folder))
    yield
    for name in ("run", "runner", "result", "report_files", "report", "stage"):
        sys.modules.pop(name, None)


@pytest.fixture
def runner():
    return import_module("runner")


@pytest.fixture
def run():
    return import_module("run")


def stage(runner, code: str, name: str = "one"):
    """A stage that is this Python code, in which `result` is its result."""
    begin = "import sys; from pathlib import Path; from result import Result; result = Result(Path(sys.argv[1]))\n"
    return runner.Stage(name, 20, "a stand-in", (sys.executable, "-c", begin + code))


def ended(runner, code: str, folder: Path, seconds: float = 20) -> tuple[str, dict]:
    found = runner.run_stage(stage(runner, code), folder, seconds)
    return import_module("result").outcome(found), found


def test_a_stage_passes_when_its_limits_are_kept(runner, tmp_path):
    outcome, found = ended(runner, "result.row(a=1); result.limit('b', 2, least=2); result.end()", tmp_path)
    assert outcome == "passed"
    assert found["rows"] == [{"a": 1}]
    assert found["limits"] == [{"what": "b", "value": 2, "limit": ">= 2", "kept": True}]


@pytest.mark.parametrize(("given", "value"), [("least=2", 1.9), ("most=2", 2.1), ("most=2", float("nan"))])
def test_a_missed_limit_is_told_from_a_pass(runner, tmp_path, given, value):
    outcome, _ = ended(runner, f"result.limit('b', float('{value}'), {given}); result.end()", tmp_path)
    assert outcome == "missed"


def test_a_stage_that_fails_says_its_last_lines(runner, tmp_path):
    outcome, found = ended(runner, "print('so far'); raise SystemExit('no kernels here')", tmp_path)
    assert outcome == "failed"
    assert found["error"] == "It ended with exit code 1. so far | no kernels here"


def test_a_stage_that_hangs_is_stopped_with_all_it_started_and_keeps_what_it_found(runner, tmp_path):
    code = f"""
import subprocess, time
result.row(a=1)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
Path({str(tmp_path / "child")!r}).write_text(str(child.pid))
time.sleep(60)"""
    outcome, found = ended(runner, code, tmp_path, seconds=4)
    assert outcome == "stopped"
    assert found["rows"] == [{"a": 1}]
    assert found["stopped"] == "It was not through after 4 s."
    child = int((tmp_path / "child").read_text())
    for _ in range(100):  # whoever adopted it takes a moment
        if not running(child):
            break
        time.sleep(0.05)
    assert not running(child)


def running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_stage_that_is_killed_says_by_what(runner, tmp_path):
    outcome, found = ended(runner, "import os; os.kill(os.getpid(), 9)", tmp_path)
    assert outcome == "failed"
    assert found["error"].startswith("It was killed by SIGKILL")


def test_a_stage_that_ends_without_a_word_has_failed(runner, tmp_path):
    assert ended(runner, "", tmp_path)[0] == "failed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_what_a_stage_lacks_becomes_its_reason(runner, tmp_path):
    """env asks torch for a GPU, which is not here."""
    found = runner.run_stage(runner.Stage("env", 60, ""), tmp_path, 60)
    assert found["ended"]
    assert "CUDA" in found["error"] or "NVIDIA" in found["error"]


def test_the_others_go_on_and_the_report_is_whole_after_each(run, runner, tmp_path, capsys):
    stages = [
        stage(runner, "raise SystemExit('broken')", "first"),
        stage(runner, "result.figure('link_bandwidth', 2.5e10, 'a copy'); result.end()", "second"),
        stage(runner, "result.limit('host us', 200, most=30); result.end()", "third"),
    ]
    seen = []
    original = run.write_report

    def watched(folder, *arguments):
        original(folder, *arguments)
        read = json.loads((folder / "report.json").read_text())
        seen.append({name: one["outcome"] for name, one in read["stages"].items()})
        profiles.load(folder / "profile.json")

    run.write_report = watched
    assert not run.check(stages, tmp_path, 60, {"commit": "none"})
    assert seen == [
        {},
        {"first": "failed"},
        {"first": "failed", "second": "passed"},
        {"first": "failed", "second": "passed", "third": "missed"},
    ]
    report = (tmp_path / "report.md").read_text()
    assert "| first | failed |" in report
    assert "| host us | 200 | <= 30 | False |" in report
    assert "host us: 200, not <= 30" in capsys.readouterr().out


def test_what_no_time_is_left_for_is_said(run, runner, tmp_path, capsys):
    assert not run.check([stage(runner, "result.end()")], tmp_path, 0.5, {})
    assert "No time was left." in capsys.readouterr().out


def test_all_passed(run, runner, tmp_path):
    assert run.check([stage(runner, "result.end()")], tmp_path, 60, {})


def test_the_profile_has_what_was_measured_and_says_what_was_not(tmp_path):
    write = import_module("report_files")
    figures = {
        "gpu_memory": {"value": 12.5e9, "how": "as the driver says"},
        "link_contended": {"value": 1e10, "how": "copies while the CPU computes"},
        "something else": {"value": 1.0, "how": "no figure of a profile"},
    }
    found = {"env": {"figures": figures}}
    (tmp_path / "mine.json").write_text(write.make_profile(found).to_json())
    profile = profiles.load(tmp_path / "mine.json")
    assert profile.figures["gpu_memory"].label == "measured"
    assert profile["gpu_memory"] == 12.5e9
    assert profile["link_contended"] == 1e10
    assert (
        profile.figures["launch"] == profiles.load("rtx3060-desktop").figures["launch"]
    )  # the nearest in memory
    assert "launch" in profile.description
    assert "gpu_memory" not in profile.description


def test_stages_are_chosen_by_name_in_their_own_order(run, runner):
    assert [stage.name for stage in runner.choose(run.STAGES, ["link", "env"])] == ["env", "link"]
    assert runner.choose(run.STAGES, None) == list(run.STAGES)


def test_every_stage_has_its_file(run):
    assert {stage.name for stage in run.STAGES} == {path.stem for path in (HERE / "stages").glob("[a-z]*.py")}


def test_a_stage_there_is_not_is_refused_with_those_there_are(run, capsys):
    with pytest.raises(SystemExit) as ended:
        run.main(["--stages", "speed"])
    assert ended.value.code == 2
    assert "There is no stage 'speed'. There are env, build, pytest" in capsys.readouterr().err


def test_without_a_gpu_one_sentence_says_why_and_another_what_to_do(run, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "PROBE", "print('torch finds none')")
    assert run.main(["--to", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "no CUDA device: torch finds none."
    assert "nvidia-smi" in said[1]
    assert list(tmp_path.iterdir()) == []


def test_a_torch_that_ends_the_process_is_no_gpu(run, monkeypatch):
    monkeypatch.setattr(run, "PROBE", "import os; os.abort()")
    assert run.no_gpu() == "asking torch ended with exit code -6"


def test_with_a_gpu_the_probe_is_silent(run, monkeypatch):
    monkeypatch.setattr(run, "PROBE", "")
    assert run.no_gpu() is None
