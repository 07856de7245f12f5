"""The worked example of docs/POLICIES.md: its two files, taken from the page, do what it says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

import dali.systems
from dali import systems
from policies.assignment_cases import roofline
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
    assert list(FILES) == ["src/dali/systems/weighty.py", "tests/systems/test_weighty.py"]


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
