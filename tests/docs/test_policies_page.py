"""The worked example of docs/POLICIES.md: its two files, taken from the page, do what it says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

import dali.systems
from dali import systems
from dali.cli.main import main
from dali.replay.traces.trace import write
from policies.assignment_cases import roofline
from replay.tiny_traces import random_trace
from systems.player import Player

PAGE = (Path(__file__).parents[2] / "docs" / "POLICIES.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def weighty(tmp_path, monkeypatch):
    (tmp_path / "weighty.py").write_text(FILES["src/dali/systems/weighty.py"])
    monkeypatch.setattr(dali.systems, "__path__", [*dali.systems.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "dali.systems.weighty", raising=False)
    yield systems.get("weighty")
    monkeypatch.delitem(sys.modules, "dali.systems.weighty", raising=False)


def test_the_page_shows_a_policy_and_its_test():
    assert list(FILES) == [
        "mine.py",
        "src/dali/systems/weighty.py",
        "tests/systems/test_weighty.py",
        "pool.py",
    ]
    assert len(FILES["mine.py"].splitlines()) <= 20


def test_its_twenty_lines_work_when_pasted(tmp_path, monkeypatch, capsys):
    """In both commands that take a policy."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILES["mine.py"])
    write("routes.npz", random_trace(answer=20))
    assert main(["simulate", "routes.npz", "--policy", "./mine.py,default", "--cache-slots", "50%"]) == 0
    assert {"./mine.py", "default"} <= {
        line.split()[0] for line in capsys.readouterr().out.splitlines() if line
    }
    flags = ["--device", "sim:paper", "--vram", "4MiB", "--policy", "./mine.py", "-n", "4"]
    assert main(["run", *flags, "Tell me a story about a little dog."]) == 0
    out, err = capsys.readouterr()
    assert out.strip()
    assert "./mine.py" in err
    assert "error" not in err


def test_its_pool_policy_is_replayed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool.py").write_text(FILES["pool.py"])
    write("routes.npz", random_trace(answer=20))
    flags = ["--ram", "25%,50%", "--profile", "laptop-8gb", "--policy", "./pool.py,fading,lru"]
    assert main(["simulate", "routes.npz", *flags]) == 0
    named = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert [named.count(name) for name in ("./pool.py", "fading", "lru")] == [2, 2, 2]


def test_its_test_passes(weighty):
    names: dict[str, object] = {}
    exec(compile(FILES["tests/systems/test_weighty.py"], "test_weighty.py", "exec"), names)
    tests = [function for name, function in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_it_is_found_and_plays(weighty):
    assert "weighty" in systems.names()
    player = Player(
        weighty.create(layers=3, experts=8, top_k=2, capacity=3), 3, 8, 3, roofline(2, 1, 0.1, 0.1, 0.2, 1, 0)
    )
    rng = np.random.default_rng(0)
    for number in range(20):
        player.run([np.array([rng.choice(8, 2, replace=False)]) for _ in range(3)], [1], seed=number)
    swaps = [swap for decision in player.log[1::3] for swap in decision]
    assert swaps


def test_the_page_lists_every_system():
    rows = re.findall(r"^\| `([a-z-]+)`(.*?) \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    listed = {name: (variants, title, source, lossy) for name, variants, title, source, lossy in rows}
    assert list(listed) == systems.names()
    for name, (variants, title, source, lossy) in listed.items():
        system = systems.get(name)
        assert re.findall(r":([a-z0-9-]+)`", variants) == list(system.variants)
        assert (title, source, lossy) == (system.title, system.source, ", ".join(system.lossy) or "-")
