"""`dali.replay.compare`: rows for whoever goes on in Python."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dali.replay
from dali.errors import UsageError
from dali.replay.traces.trace import write
from replay.tiny_traces import random_trace


@pytest.fixture
def path(tmp_path):
    write(tmp_path / "tiny.npz", random_trace(answer=20))
    return tmp_path / "tiny.npz"


def test_one_of_everything(path):
    rows = dali.replay.compare(path, "lru", cache_slots=4)
    assert [(row["policy"], row["slots"], row["batch"], row["profile"]) for row in rows] == [
        ("lru", 4, 1, "paper")
    ]
    plain = (str, int, float, bool, list, type(None))
    assert all(isinstance(value, plain) for value in rows[0].values())


def test_many_are_ranked_within_what_is_alike(path):
    rows = dali.replay.compare(
        [str(path)], ["all-cpu", "lru", "default"], batches=[1, 2], cache_slots=["25%", 4]
    )
    groups = [rows[begin : begin + 3] for begin in range(0, 12, 3)]
    for group in groups:
        assert len({(row["batch"], row["slots"]) for row in group}) == 1
        speeds = [row["tokens_per_second"] for row in group]
        assert speeds == sorted(speeds, reverse=True)


def test_all_are_dalis_own_and_what_cannot_be_meant_is_refused(path):
    assert len(dali.replay.compare(path, cache_slots=4, cache_only=True)) == 7
    with pytest.raises(UsageError, match="no system 'best'"):
        dali.replay.compare(path, ["best"])
    with pytest.raises(AttributeError, match="contrast"):
        dali.replay.contrast  # noqa: B018


def test_torch_is_not_needed(path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"from dali.replay import compare; print(len(compare({str(path)!r}, ['lru', 'daop'], cache_slots=4)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"


def test_experts_on_disk_are_compared_without_an_accelerator(path):
    rows = dali.replay.compare(path, ram=["25%", "16KiB"])
    assert [(row["ram"], row["slots"]) for row in rows] == [("25%", 0)] * 5 + [("16KiB", 0)] * 5
    assert {row["policy"] for row in rows} == {"default", "balanced", "fading", "lfu", "lru"}
    above = dali.replay.compare(path, "fading", ram="25%", cache_slots=2)
    assert above[0]["accelerator_hit_rate"] > 0
    with pytest.raises(UsageError, match="no disk beneath it"):
        dali.replay.compare(path, "lru", ram="25%", cache_only=True)
