"""Pool policies from a file and from an installed package: found, replayed, and named with file and line when they are wrong."""

import re
import sys

import pytest

from dali.errors import DaliError, UsageError
from dali.policies import plugins
from dali.replay import compare
from dali.replay.disk import pools
from dali.replay.traces.trace import write
from replay.tiny_traces import random_trace

LRU = """
from dali.policies.pool import PoolPolicy

class Policy(PoolPolicy):
    def __init__(self, layers, experts, slots, read_seconds):
        super().__init__(layers, experts, slots, read_seconds)
        self.turn, self.last = 0, [[0.0] * experts for _ in range(layers)]

    def observe(self, layer, workload):
        self.turn += 1
        for expert, tokens in enumerate(workload):
            if tokens:
                self.last[layer][expert] = self.turn
        return self.last[layer]
"""


@pytest.fixture
def trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t.npz", random_trace())
    return "t.npz"


def replayed(trace, name):
    return compare(trace, [name], ram="50%", profiles="laptop-8gb")


def test_a_file_decides_as_the_same_policy_of_dalis_own(trace, tmp_path):
    (tmp_path / "mine.py").write_text(LRU)
    [mine], [own] = replayed(trace, "./mine.py"), replayed(trace, "lru")
    assert mine.pop("policy") == "./mine.py"
    assert own.pop("policy") == "lru"
    assert mine == own


def test_an_installed_package_brings_one(trace, tmp_path, monkeypatch):
    site = tmp_path / "site"
    (site / "tiny_pools-1.0.dist-info").mkdir(parents=True)
    (site / "tiny_pools.py").write_text(LRU)
    (site / "tiny_broken_pools.py").write_text("x = 1\nundefined")
    info = site / "tiny_pools-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-pools\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[dali.pools]\ntiny = tiny_pools\ntiny-class = tiny_pools:Policy\ntiny-broken = tiny_broken_pools\n"
    )
    monkeypatch.syspath_prepend(str(site))
    plugins.from_package.cache_clear()
    try:
        assert replayed(trace, "tiny")[0]["hit_rate"] == replayed(trace, "lru")[0]["hit_rate"]
        assert replayed(trace, "tiny-class")[0]["policy"] == "tiny-class"
        broken = r"The pool tiny-broken of the package tiny-pools .* raises NameError .*tiny_broken_pools.py, line 2"
        with pytest.raises(DaliError, match=broken):
            pools.check("tiny-broken")
        with pytest.raises(UsageError, match="There is no policy 'tiny-other'") as caught:
            pools.check("tiny-other")
        assert "tiny, tiny-broken, tiny-class, or a file that ends in .py" in caught.value.fix
    finally:
        for name in ("tiny_pools", "tiny_broken_pools"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = 1", "bad.py, line 1, holds no class Policy"),
        ("from dali.policies.cache.lru import Policy", "is no PoolPolicy, which says who stays in RAM"),
        (
            LRU.replace("return self.last[layer]", "return self.last[layer][1:]"),
            "bad.py, line 9, ranks 1 experts, of 2 (layer 0, step 1)",
        ),
        (
            LRU.replace("return self.last[layer]", "return [float('nan')] * self.experts"),
            "bad.py, line 9, ranks expert 0 by nan (layer 0, step 1)",
        ),
        (
            LRU.replace("return self.last[layer]", "return 1 / 0"),
            "bad.py, line 14, raises ZeroDivisionError (division by zero) (layer 0, step 1)",
        ),
        (LRU.replace("slots, read_seconds):", "slots):"), "raises TypeError"),
        (
            LRU + "\n    def donors(self, layer, counts):\n        return [self.layers]\n",
            "bad.py, line 16, names layer 1, of 0 to 0 (layer 0, step 1)",
        ),
        (
            LRU + "\n    def donors(self, layer, counts):\n        return [0.0]\n",
            "bad.py, line 16, names layer 0.0, of 0 to 0 (layer 0, step 1)",
        ),
        (
            LRU + "\n    def donors(self, layer, counts):\n        return [count == 0 for count in counts]\n",
            "bad.py, line 16, names layer False, of 0 to 0 (layer 0, step 1)",
        ),
        (
            LRU + "\n    def worth(self, rank, wait):\n        return rank / 0.0\n",
            "bad.py, line 17, raises ZeroDivisionError",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_replayed(trace, tmp_path, code, said):
    (tmp_path / "bad.py").write_text(code)
    with pytest.raises(DaliError, match=re.escape(said)):
        pools.check("bad.py")


def test_what_goes_wrong_later_names_the_layer_and_the_step(trace, tmp_path):
    (tmp_path / "bad.py").write_text(
        LRU.replace("return self.last[layer]", "return self.last[3 % self.turn]")
    )
    with pytest.raises(DaliError, match=r"bad.py, line 14, raises IndexError .* \(layer 0, step 2\)"):
        replayed(trace, "bad.py")
