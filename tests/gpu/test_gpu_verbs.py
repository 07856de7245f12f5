"""What verbs do over a GPU that others do elsewhere: compare systems, explain, trace; on a stand-in for its driver."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_gpu_model import answers, directory, expected, load

from dali.cli.bench import _ways
from dali.cli.main import main
from dali.options import LoadOptions
from dali.replay.traces.trace import read as read_trace
from trace_events import of, read

__all__ = ["directory", "expected"]
SYSTEMS = ["default", "fiddler", "lru"]


def test_systems_take_turns_in_the_same_slots_and_each_answers_as_the_cpu(driver, directory, expected):
    llm = load(directory, policy=SYSTEMS[0])
    used = driver.used
    options = LoadOptions(device="cuda", vram="120KiB", quant="w4", policy=SYSTEMS[0])
    ways = _ways(llm, options, SYSTEMS)
    assert driver.used <= used + (64 << 10)  # what predicts routing for another, and no second slots
    for turn in (0, 1, 0, 2, 2, 1, 0):
        assert answers(ways[turn]()) == expected
        assert llm.stats()["policy"] == SYSTEMS[turn]
    assert driver.races == []
    llm.close()


@pytest.fixture
def cuda(driver, directory, monkeypatch, tmp_path):
    """Runs a verb on the model over the GPU, in a folder of its own -> what it said."""
    monkeypatch.chdir(tmp_path)
    for verb in ("run", "serve"):
        monkeypatch.setattr(f"dali.cli.{verb}.check_gpu", lambda device: None)

    def cuda(capsys, verb, *arguments):
        assert (
            main([verb, str(directory), *arguments, "--device", "cuda", "--vram", "120KiB", "--quant", "w4"])
            == 0
        )
        return capsys.readouterr()

    return cuda


def test_verbs_do_on_a_gpu_what_they_do_elsewhere(cuda, capsys, tmp_path, driver):
    out, _ = cuda(
        capsys, "bench", "-p", "4", "-n", "3", "-r", "2", "--compare", ",".join(SYSTEMS), "-o", "jsonl"
    )
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["system"], row["test"]) for row in rows] == [(s, t) for t in ("pp4", "tg3") for s in SYSTEMS]
    assert not any(row["modelled"] for row in rows)
    _, err = cuda(capsys, "bench", "-p", "4", "-n", "3", "-r", "1", "--explain", "b.json")
    assert "plans for the GPU are made in Python" in err
    found = of(read((tmp_path / "b.json").read_text()), "X")
    assert {event["args"].get("elsewhere") for event in found} >= {"CPU", "accelerator"}
    (tmp_path / "prompts.txt").write_text("5 6\n")
    cuda(capsys, "trace", "-o", "t.npz", "--prompts", "prompts.txt", "-n", "3", "--raw", "--plot", "t.html")
    assert np.all(read_trace(tmp_path / "t.npz").scores.sum(axis=2) > 0.9)
    assert driver.races == []
