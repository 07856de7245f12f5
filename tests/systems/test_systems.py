import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dali.systems
from dali import systems
from dali.errors import UsageError
from dali.policies import create
from dali.policies.registry import DEFAULT
from policies.assignment_cases import roofline
from systems.player import Player

KNOWN = [
    "all-cpu",
    "collaborative",
    "dali-paper",
    "daop",
    "default",
    "fiddler",
    "finemoe",
    "freetoken",
    "gpu-only",
    "hobbit",
    "hybrimoe",
    "ktransformers",
    "lfu",
    "lfu-age",
    "lru",
    "mixtral-offloading",
    "moe-infinity",
    "moe-lightning",
]
LOSSY = ["daop", "hobbit", "ktransformers", "mixtral-offloading"]
EVERY = [*KNOWN, *(f"{name}:{variant}" for name in KNOWN for variant in systems.get(name).variants)]
COSTS = roofline(2.0, 0.5, 0.3, 0.1, 1.5, 1.3, 0.05)
LAYERS, EXPERTS, TOP_K = 5, 8, 2


def test_the_files_are_the_systems():
    assert systems.names() == KNOWN
    assert systems.names(lossy=True) == LOSSY


@pytest.mark.parametrize("name", EVERY)
def test_every_system_names_itself_and_its_source(name):
    system = systems.get(name)
    assert system.name == name
    assert system.title
    assert system.source
    assert system.signals <= {"weights", "scores", "gate_inputs", "embeddings"}
    assert ":" not in name or system.title.startswith(systems.get(name.partition(":")[0]).title)


@pytest.mark.parametrize("name", ["best", "", "_pool", "lru:fifo", "collaborative:lifo", "default:"])
def test_an_unknown_name_lists_the_known_ones(name):
    if name == "default:":
        assert systems.get(name) is systems.get("default")
        return
    with pytest.raises(UsageError, match=f"no system '{name}'") as caught:
        systems.get(name)
    assert ("collaborative:lru, collaborative:fifo" if name.endswith("lifo") else "lru") in caught.value.fix


def test_a_new_file_is_a_new_system(tmp_path, monkeypatch):
    (tmp_path / "do_nothing.py").write_text(
        "from dali.systems import System, get\nSYSTEM = System('do-nothing', 'Nothing', get('all-cpu').create, 'here')\n"
    )
    monkeypatch.setattr(dali.systems, "__path__", [*dali.systems.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "dali.systems.do_nothing", raising=False)
    assert "do-nothing" in systems.names()
    assert systems.get("do-nothing").title == "Nothing"


def test_systems_need_no_torch():
    code = """
import sys
from dali import systems
for name in systems.names():
    systems.get(name).create(layers=2, experts=4, top_k=1, capacity=2, seed=0)
assert not {"torch", "transformers"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_default_is_what_a_run_does():
    policies = systems.get("default").create(LAYERS, EXPERTS, TOP_K, 3)
    assert type(policies.assign) is type(create("assign", DEFAULT["assign"]))
    assert type(policies.prefetch) is type(create("prefetch", DEFAULT["prefetch"]))
    assert type(policies.cache) is type(create("cache", DEFAULT["cache"], layers=1, experts=1, capacity=1))


@pytest.mark.parametrize(
    ("experts", "count", "window", "swaps"), [(8, 1, 4, 1), (64, 4, 4, 8), (128, 4, 4, 8)]
)
def test_dali_as_published_has_the_papers_constants(experts, count, window, swaps):
    policies = systems.get("dali-paper").create(LAYERS, experts, TOP_K, 3)
    assert policies.prefetch.count == count
    assert (policies.cache.window, policies.cache.swaps) == (window, swaps)


@pytest.mark.parametrize(("name", "assign", "prefetch", "cache"), [
    ("all-cpu", "cpu", "none", "none"),
    ("gpu-only", "gpu", "none", "lru"),
    ("lru", "two_lane", "none", "lru"),
    ("lfu", "two_lane", "none", "lfu"),
    ("mixtral-offloading", "gpu", "next_gate", "lru"),
    ("dali-paper", "greedy", "residual", "workload"),
])  # fmt: skip
def test_what_is_made_of_known_parts(name, assign, prefetch, cache):
    policies = systems.get(name).create(LAYERS, EXPERTS, TOP_K, 3)
    modules = [type(part).__module__ for part in (policies.assign, policies.prefetch, policies.cache)]
    assert modules == [
        f"dali.policies.assign.{assign}",
        f"dali.policies.prefetch.{prefetch}",
        f"dali.policies.cache.{cache}",
    ]


def test_mixtral_offloading_loads_two_experts_ahead():
    assert systems.get("mixtral-offloading").create(LAYERS, EXPERTS, TOP_K, 3).prefetch.count == 2


def play(name, capacity, steps, seed=0):
    policies = systems.get(name).create(
        layers=LAYERS, experts=EXPERTS, top_k=TOP_K, capacity=capacity, seed=seed
    )
    player = Player(policies, LAYERS, EXPERTS, capacity, COSTS)
    for number, (requests, prefill, draw) in enumerate(steps):
        rng = np.random.default_rng(draw)
        routing = [
            np.array([rng.choice(EXPERTS, TOP_K, replace=False) for _ in requests]) for _ in range(LAYERS)
        ]
        player.run(routing, requests, prefill, seed=number)
    return player


STEPS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 5), min_size=1, max_size=5, unique=True), st.booleans(), st.integers(0, 2**16)
    ),
    min_size=1,
    max_size=8,
)


@pytest.mark.parametrize("name", EVERY)
@settings(deadline=None, max_examples=10)
@given(capacity=st.integers(0, EXPERTS), steps=STEPS)
def test_every_decision_is_possible_and_made_again(name, capacity, steps):
    """The player checks each plan, swap and prefetch."""
    assert play(name, capacity, steps).log == play(name, capacity, steps).log


@pytest.mark.parametrize("name", EVERY)
def test_objects_share_nothing(name):
    steps = [([1, 2], True, 5), ([1, 2], False, 6), ([3], False, 7), ([3], False, 8)]
    first = play(name, 3, steps).log
    play(name, 3, [([4], False, 9)] * 5, seed=1)
    assert play(name, 3, steps).log == first
