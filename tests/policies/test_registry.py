import subprocess
import sys

import pytest

import dali.policies.assign
from dali.errors import UsageError
from dali.policies import create, names

KNOWN = {
    "assign": ["cpu", "cpu_on_miss", "gpu", "greedy", "layerwise", "two_lane"],
    "prefetch": ["next_gate", "none", "residual", "ridge"],
    "cache": ["fading", "lfu", "lru", "none", "static", "workload"],
    "pool": ["balanced", "fading", "lfu", "lru"],
}
OPTIONS = {
    "assign": {},
    "prefetch": {},
    "cache": {"layers": 1, "experts": 4, "capacity": 2},
    "pool": {"layers": 1, "experts": 4, "slots": 2, "read_seconds": [1.0]},
}


@pytest.mark.parametrize("kind", KNOWN)
def test_the_files_are_the_policies(kind):
    assert names(kind) == KNOWN[kind]
    for name in names(kind):
        options = OPTIONS[kind] | ({"cpu_layers": 1} if name == "layerwise" else {})
        assert type(create(kind, name, **options)).__module__ == f"dali.policies.{kind}.{name}"


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("name", ["best", "", "..guard", "__init__"])
def test_an_unknown_name_lists_the_known_ones(kind, name):
    with pytest.raises(UsageError, match=f"no {kind} policy '{name}'") as caught:
        create(kind, name)
    assert ", ".join(KNOWN[kind]) in caught.value.fix


def test_a_new_file_is_a_new_policy(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "class Policy:\n    def __init__(self, level):\n        self.level = level\n"
    )
    monkeypatch.setattr(dali.policies.assign, "__path__", [*dali.policies.assign.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "dali.policies.assign.mine", raising=False)
    assert "mine" in names("assign")
    assert create("assign", "mine", level=3).level == 3


def test_policies_need_neither_torch_nor_numpy():
    code = """
import sys
from dali.policies import create, names
for kind in ("assign", "prefetch", "cache", "pool"):
    for name in names(kind):
        __import__(f"dali.policies.{kind}.{name}")
import dali.policies.guard, dali.policies.lanes, dali.policies.places, dali.policies.read_ahead
assert not {"torch", "numpy", "transformers"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
