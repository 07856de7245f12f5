"""Systems from a file and from an installed package: found, made, and named with file and line when they are wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dali import systems
from dali.errors import DaliError, UsageError
from dali.policies import plugins
from dali.policies.cache import CachePolicy, Swap
from dali.policies.prefetch import PREDICTORS
from dali.systems import _plugins

CACHE = """
from dali.policies.cache import CachePolicy, Swap

class Policy(CachePolicy):
    signals = frozenset({"weights"})
    def observe(self, layer, workload, resident, fetched=(), protected=frozenset(), signals=None):
        return [Swap(min(resident), max(fetched))] if fetched else []
"""
SYSTEM = """
from dali.policies import Policies, create
from dali.systems import System

def make(layers, experts, top_k, capacity, seed=0):
    return Policies(create("assign", "gpu"), create("prefetch", "none"),
        create("cache", "lru", layers=layers, experts=experts, capacity=capacity))

SYSTEM = System("mine", "Mine", make, "me", variants={"slow": make})
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(name, capacity=2):
    return systems.get(name).create(3, 8, 2, capacity)


def test_a_policy_takes_its_kinds_place_in_the_default(here):
    (here / "mine.py").write_text(CACHE)
    system = systems.get("./mine.py")
    assert (system.name, system.guarded, system.signals) == ("./mine.py", True, {"weights", "gate_inputs"})
    made, default = make("./mine.py"), make("default")
    assert isinstance(made.cache, CachePolicy)
    assert made.cache.observe(0, [1] * 8, {1, 2}, [5]) == [Swap(1, 5)]
    assert (type(made.assign), type(made.prefetch)) == (type(default.assign), type(default.prefetch))
    assert systems.get(str(here / "mine.py")).name == str(here / "mine.py")


def test_other_kinds_of_policies(here):
    (here / "cpu.py").write_text("from dali.policies.assign.cpu import Policy")
    (here / "ahead.py").write_text("from dali.policies.prefetch.next_gate import Policy")
    assert type(make("cpu.py").assign).__module__ == "dali.policies.assign.cpu"
    assert make("ahead.py").prefetch.predictor == "next_gate"


def test_a_whole_system_with_its_variants(here):
    (here / "mine.py").write_text(SYSTEM)
    assert type(make("mine.py").assign).__module__ == "dali.policies.assign.gpu"
    assert systems.get("mine.py:slow").title == "Mine, slow"
    with pytest.raises(UsageError, match=r"no system 'mine.py:fast'"):
        systems.get("mine.py:fast")


def test_a_file_that_changed_is_read_anew(here):
    (here / "mine.py").write_text(SYSTEM)
    assert systems.get("mine.py").title == "Mine"
    (here / "mine.py").write_text(SYSTEM.replace('"Mine"', '"Ours"'))
    assert systems.get("mine.py").title == "Ours"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "Cannot read the policy file bad.py (No such file or directory)"),
        ("x = 1\nundefined", "bad.py, line 2, raises NameError"),
        ("x = 1\ndef (", "bad.py, line 2, raises SyntaxError (invalid syntax)"),
        ("\x00", "cannot contain null bytes"),  # a ValueError before Python 3.11.4
        ("import no_such_package", "bad.py, line 1, raises ModuleNotFoundError"),
        ("import sys\n\nsys.exit('bye')", "bad.py, line 3, raises SystemExit (bye)"),
        ("import dali", "bad.py, line 1, holds neither a SYSTEM nor a class Policy"),
        ("SYSTEM = 3", "bad.py, line 1, holds 3, which is neither a System nor a class"),
        ("\nclass Policy:\n    def decide(self): ...", "bad.py, line 3, is no CachePolicy"),
        (
            "\nfrom dali.policies.pool import PoolPolicy as P\nclass Policy(P):\n    def observe(self, layer, workload): ...",
            "bad.py, line 4, is a policy of who stays in RAM over a disk",
        ),
    ],
)
def test_files_that_cannot_be_used(here, text, said):
    if text is not None:
        (here / "bad.py").write_text(text)
    with pytest.raises(DaliError) as caught:
        systems.get("bad.py")
    assert said in caught.value.problem
    assert "\n" not in caught.value.problem
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("return Policies(", "return 1/0, (", "bad.py, line 6, raises ZeroDivisionError"),
        ("return Policies(", "return (", "which is no Policies"),
        ('create("assign", "gpu")', "3", "is 3, which has no method assign"),
        ('create("prefetch", "none")', "None", "is None, which is no PrefetchPolicy"),
        ('create("cache", "lru"', 'dict(a="lru"', "which is no CachePolicy"),
        ("capacity=capacity", "capacity=capacity + 1", "starts with 9 residents, where 6 fit"),
        ('"none")', '"none", distance=0)', "has the distance 0"),
    ],
)
def test_systems_that_cannot_start(here, old, new, said):
    (here / "bad.py").write_text(SYSTEM.replace(old, new))
    with pytest.raises(DaliError) as caught:
        make("bad.py")
    assert said in caught.value.problem
    assert "bad.py, line " in caught.value.problem


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    signals", "    def __init__(self): ...\n    signals", "bad.py, line 5, raises TypeError"),
        ('{"weights"}', '{"colour"}', "wants the signals colour, of ids, weights, scores, gate_inputs"),
        (
            "    signals",
            "    def initial(self, layer):\n        return (1, 1)\n    signals",
            "bad.py, line 5, starts with expert 1 twice",
        ),
    ],
)
def test_policies_that_cannot_start(here, old, new, said):
    (here / "bad.py").write_text(CACHE.replace(old, new))
    with pytest.raises(DaliError) as caught:
        make("bad.py")
    assert said in caught.value.problem


def test_a_policy_that_inherits_what_it_does_is_named_by_its_own_file(here):
    (here / "bad.py").write_text(
        "from dali.policies.cache import DemandFilled\n\nclass Policy(DemandFilled):\n"
        "    def rank(self, before, step):\n        return before / 0\n"
    )
    from dali.policies.decisions import Decisions

    decisions = Decisions(make("bad.py"), 3, 8)
    with pytest.raises(DaliError, match=r"cache policy at bad.py, line 5, raises ZeroDivisionError"):
        decisions.observe(0, [1] * 8, {0, 1}, [2], set(), None, [{0, 1}].__getitem__)


def test_what_begins_a_step_is_watched_too(here):
    (here / "bad.py").write_text(
        SYSTEM.replace("return Policies(", "return Policies(begin=lambda step: step.colour, *(").replace(
            "capacity=capacity))", "capacity=capacity)))"
        )
    )
    begin = make("bad.py").begin
    assert begin is not None
    with pytest.raises(DaliError, match=r"bad.py, line 6, raises AttributeError .* \(as a step begins\)"):
        begin(None)  # type: ignore[arg-type]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with three systems, one of them broken."""
    site = tmp_path / "site"
    (site / "tiny_systems").mkdir(parents=True)
    (site / "tiny_systems" / "__init__.py").write_text(CACHE)
    (site / "tiny_systems" / "whole.py").write_text(SYSTEM)
    (site / "tiny_systems" / "broken.py").write_text("x = 1\nundefined")
    info = site / "tiny_systems-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-systems\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[dali.systems]\ntiny = tiny_systems\ntiny-whole = tiny_systems.whole:SYSTEM\n"
        "tiny-broken = tiny_systems.broken:SYSTEM\nlru = tiny_systems.whole:SYSTEM\n"
    )
    monkeypatch.syspath_prepend(str(site))
    plugins.from_package.cache_clear()
    _plugins.from_package.cache_clear()
    yield site
    for name in [name for name in sys.modules if name.startswith("tiny_systems")]:
        del sys.modules[name]


def test_an_installed_packages_systems_are_found_by_their_entry_points(package):
    assert systems.installed() == ["lru", "tiny", "tiny-broken", "tiny-whole"]
    assert systems.get("tiny-whole").title == "Mine"
    assert systems.get("tiny-whole:slow").name == "tiny-whole:slow"
    assert type(make("tiny").cache).__module__ == "tiny_systems"
    assert systems.get("lru").title == "Two lanes + LRU"  # dali's own come first
    with pytest.raises(
        DaliError, match=r"tiny-broken of the package tiny-systems .* raises NameError .*broken.py, line 2"
    ):
        systems.get("tiny-broken")
    with pytest.raises(UsageError) as caught:
        systems.get("tiny-missing")
    assert "tiny, tiny-broken, tiny-whole, tiny-whole:slow" in caught.value.fix


def test_the_command_lists_them_and_what_is_wrong_with_one(package, tmp_path):
    lines = subprocess.run(
        [sys.executable, "-m", "dali", "run", "--list-policies"],
        env={"PYTHONPATH": str(package), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "tiny-whole                    Mine\n" in lines
    assert (
        "tiny-broken                   cannot be used: The system tiny-broken of the package tiny-systems"
        in lines
    )


def test_predictors_are_those_that_can_be_calibrated():
    from dali.offload.fit import FITS

    assert set(PREDICTORS) == {"next_gate", *FITS}
    assert {path.stem for path in Path(_plugins.__file__).parents[1].glob("policies/prefetch/*.py")} >= set(
        PREDICTORS
    )
