"""Sweeps on a Ray cluster. `make ray` runs what needs one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from dali.cli.main import main
from dali.errors import DaliError
from dali.replay import cells, sweep
from dali.replay.ray_pool import ray_map
from dali.replay.traces.trace import write
from replay.tiny_traces import random_trace


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a trace and a policy whose names are relative, as users write them."""
    monkeypatch.chdir(tmp_path)
    cells.read_trace.cache_clear()
    write(Path("tiny.npz"), random_trace(answer=20))
    Path("mine.py").write_text("from dali.policies.cache.lru import Policy\n")
    return tmp_path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """One for all tests, as starting it takes seconds."""
    ray = pytest.importorskip("ray", reason="Ray is not here: `make ray` installs it and runs these.")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # where it leaves a key of its own
        ray.init(num_cpus=2, log_to_driver=False, logging_level="error", include_dashboard=False)
        yield
        ray.shutdown()


def test_without_ray_its_name_is_told_with_how_to_get_it(folder, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["simulate", "tiny.npz", "--workers", "ray"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: Ray, which was asked for, is not installed.",
        "Install it: `pip install 'ray[serve]'`.",
    ]


def test_so_many_processes_give_what_one_gives(folder, capsys):
    said = []
    for workers in ("1", "2"):
        assert main(["simulate", "tiny.npz", "--policy", "lru", "--workers", workers]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert main(["simulate", "tiny.npz", "--workers", "0"]) == 2
    assert "a whole number from 1, or ray" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_cluster_gives_the_rows_of_one_process_in_their_order(folder):
    write(Path("other.npz"), random_trace(answer=10))
    planned = cells.plan(
        ["tiny.npz", "other.npz"], ["default", "lru", "./mine.py"], ["paper", "egpu-x4"], ["own"], [1, 2], ["25%", "4"], None, 0
    )  # fmt: skip
    told: list[int] = []
    found = sweep.sweep(planned, told.append, "ray")
    assert found == sweep.sweep(planned, processes=1)
    assert told == list(range(1, len(planned) + 1))


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_broken_policy_is_told_as_without_a_cluster(folder, capsys):
    Path("mine.py").write_text(
        "from dali.policies.cache import CachePolicy, Swap\nclass Policy(CachePolicy):\n"
        "    def observe(self, layer, workload, resident, *rest):\n        return [Swap(min(resident), 99)]\n"
    )
    said = []
    for workers in ("1", "ray"):
        code = main(
            ["simulate", "tiny.npz", "--policy", "./mine.py", "--cache-slots", "50%", "--workers", workers]
        )
        said.append((code, capsys.readouterr().err))
    assert said[0] == said[1]
    assert said[0][0] == 1


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_where_ray_fails_its_own_words_are_told(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setattr("os.getcwd", lambda: str(tmp_path / "nowhere"))
    with pytest.raises(DaliError, match=r"Ray failed: .*nowhere"), ray_map(len, ["a"]) as lengths:
        list(lengths)
