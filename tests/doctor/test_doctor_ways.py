"""The ways that are told of a model here: one for each policy that makes sense, the one that is taken marked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dali.doctor.here import Here
from dali.doctor.plan import Device, Free
from dali.doctor.sizes import Dense, Kept, ModelSizes
from dali.doctor.ways import Way, ways_of
from dali.errors import UsageError
from dali.hardware import profile as profiles
from dali.hardware.cost import reading
from dali.hardware.profile import Profile
from dali.options import LoadOptions
from measured import ACCELERATED, measured

SIZES = ModelSizes(
    name="m",
    family="f",
    layers=24,
    moe_layers=24,
    experts=32,
    top_k=4,
    hidden=2880,
    intermediate=2880,
    gated=True,
    biased=False,
    dense=(
        Dense(2880, 4096, "linear"),
        Dense(200_000, 2880, "embedding"),
        Dense(200_000, 2880, "linear", head=True),
    ),
    kept=(Kept(8, 64, 64, None, 64),) * 24,
    context=4096,
    vocab=200_000,
    dtype="bfloat16",
    file_bytes=2**34,
)
ALONE = "all in RAM, on rtx3060-desktop's CPU alone"


def ways(
    profile: Profile | None = None, ram: int = 2**36, sizes: ModelSizes = SIZES, **options: Any
) -> list[Way]:
    """Of a simulated accelerator, or one that was measured here."""
    here = measured(**ACCELERATED) if profile is None else profile
    reads = reading(here)
    machine = Here(here, Free(ram, None, reads), compiled=True, cores=8)
    asked = LoadOptions(quant="w4", **options)
    device = None
    if asked.device != "cpu":
        simulated = asked.device_kind == "sim"
        device = Device(asked.device, asked.planning_profile() or here, simulated)
    return ways_of(sizes, asked, machine, device)


def rows(found: list[Way]) -> list[tuple[str, dict[str, Any], list[str]]]:
    return [(way.policy or way.name, dict(way.added), list(way.dropped)) for way in found]


def test_each_policy_that_makes_sense_is_told_with_what_asks_for_it():
    found = ways(device="sim:rtx3060-desktop", vram="4GiB")
    assert rows(found) == [
        ("misses by the faster way", {}, []),
        ("misses on the CPU", {"assign": "cpu_on_miss", "prefetch": "none"}, []),
        ("misses copied", {"assign": "gpu"}, []),
        ("15 of 24 layers on the CPU", {"n_cpu_moe": 15}, []),
        (ALONE, {"device": "cpu"}, ["vram"]),
    ]
    assert [way.taken for way in found] == [True, False, False, False, False]
    slot = found[0].plan.slot
    assert 9 * 32 * slot <= 2**32 < 10 * 32 * slot  # what has room beside the layers on the CPU
    assert found[3].plan.resident == 9 * 32
    fastest = max(found, key=lambda way: way.prediction.decode.expected)
    assert fastest.taken


def test_where_all_experts_are_there_nothing_is_to_be_decided():
    small = replace(SIZES, intermediate=64)
    assert rows(ways(device="sim:rtx3060-desktop", sizes=small)) == [
        ("experts in RAM and on sim:rtx3060-desktop", {}, []),
        (ALONE, {"device": "cpu"}, []),
    ]


def test_where_none_has_room_the_cpu_has_them_and_the_accelerator_the_rest():
    assert rows(ways(device="sim:rtx3060-desktop", vram=0)) == [
        ("experts on the CPU", {}, []),
        (ALONE, {"device": "cpu"}, ["vram"]),
    ]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"assign": "gpu"}, "misses copied"),
        ({"assign": "cpu"}, "experts on the CPU"),
        ({"assign": "greedy"}, "by greedy"),
        ({"policy": "fiddler"}, "by fiddler"),
        ({"policy": "collaborative"}, "by collaborative"),
        ({"n_cpu_moe": 20}, "20 of 24 layers on the CPU"),
    ],
)
def test_what_is_asked_for_is_taken_and_the_others_are_without_it(asked, told):
    found = ways(device="sim:rtx3060-desktop", vram="4GiB", **asked)
    assert found[0].policy == told
    assert found[0].taken
    (default,) = [way for way in found if way.policy == "misses by the faster way"]
    assert (dict(default.added), list(default.dropped)) == ({}, list(asked))
    policies = [way.policy for way in found]
    assert len(set(policies)) == len(policies)
    plain = ways(device="sim:rtx3060-desktop", vram="4GiB")
    assert default.prediction == plain[0].prediction


def test_whole_layers_that_have_no_room_are_refused_as_loading_does():
    with pytest.raises(UsageError, match=r"leaves 23 MoE layers to sim:rtx3060-desktop.*; it has room for 9"):
        ways(device="sim:rtx3060-desktop", vram="4GiB", n_cpu_moe=1)


def test_a_gpu_that_loses_is_told_and_the_cpu_is_taken():
    """As dali.offload leaves all to the CPU then, unless somebody says how experts are to be split."""
    slow = measured(**ACCELERATED | {"sync": 0.1})
    found = ways(slow, device="cuda")
    assert rows(found)[0] == ("all in RAM, on the CPU alone", {}, [])
    assert [way.taken for way in found] == [True] + [False] * (len(found) - 1)
    assert rows(found)[1] == ("misses by the faster way", {"assign": "two_lane"}, [])
    said = ways(slow, device="cuda", assign="two_lane")
    assert (said[0].policy, said[0].taken) == ("misses by the faster way", True)
    assert ways(device="cuda")[0].plan.device is not None


def test_the_policies_are_told_of_experts_on_disk_too():
    found = ways(device="sim:rtx3060-desktop", vram="2GiB", ram=2**33)
    assert {way.plan.where for way in found} == {"disk"}
    assert [row[1] for row in rows(found)] == [
        {},
        {"assign": "cpu_on_miss", "prefetch": "none"},
        {"assign": "gpu"},
        {"n_cpu_moe": 20},
        {"device": "cpu"},
    ]
    slots = found[0].plan.slots + found[0].plan.resident
    assert slots < found[0].plan.all_slots


@pytest.mark.parametrize(
    ("plain", "name"), [(6e9, "by reads past the page cache"), (2.7e9, "by plain reading")]
)
def test_the_other_way_of_reading_has_room_for_what_the_page_cache_leaves(plain, name):
    """Seven experts that are being read are in the page cache, too."""
    profile = measured(plain_bandwidth=plain, plain_queue_depth=7.0)
    taken, other = ways(profile, ram=2**33)
    assert (other.name, other.added, other.dropped) == (f"the same {name}", {}, ())
    assert taken.plan.plain == (plain == 6e9)
    assert other.plan.plain != taken.plan.plain
    more = 1 if taken.plan.plain else -1
    assert (other.plan.slots - taken.plan.slots) * more in (6, 7)  # of what is left a part is for prefixes
    assert taken.prediction.decode.expected > other.prediction.decode.expected


@pytest.mark.parametrize("name", profiles.known())
def test_the_default_is_the_best_that_is_told(name):
    found = ways(device=f"sim:{name}", vram="4GiB")
    with_it = [way.prediction.decode.expected for way in found if way.plan.device is not None]
    assert with_it[0] >= 0.999 * max(with_it)
