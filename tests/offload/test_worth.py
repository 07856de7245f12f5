from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from dali.errors import parameter
from dali.hardware import profile as profiles
from dali.hardware.cost import CostModel, ExpertSize
from dali.hardware.profile import Profile
from dali.offload.worth import decide, doubt, weigh
from dali.options import LoadOptions
from measured import ACCELERATED, measured

HERE = measured(**ACCELERATED)


def asked(
    hidden: int, profile: Profile | None = None, on_disk: object = None, **options: Any
) -> tuple[bool, list[str], dict[str, Any]]:
    """Whether a device is used for a model of two layers with eight such experts, two a token, none of them resident; its dense
    part is as large as an expert a layer. With what is said, and what the telemetry is told."""
    profile = profile or profiles.load("egpu-x4")
    weights = 3 * hidden * hidden
    size = ExpertSize(hidden, hidden, 3, {"w8": weights})
    costs = CostModel(profile, size, "w8", 16)
    telemetry = SimpleNamespace(worth=None)
    pool = SimpleNamespace(layers=2, experts=8)
    loaded: Any = SimpleNamespace(pool=pool, top_k=2, telemetry=telemetry, disk=on_disk)
    worth = weigh(loaded, costs, (0, 4), (2 * weights, 2 * weights, 14))
    notes: list[str] = []
    used = decide(worth, loaded, LoadOptions(**{"device": "cuda", **options}), profile, notes.append)
    found: Any = telemetry.worth
    return used, notes, found


def test_a_loss_by_a_published_profile_is_said_with_both_times_and_the_device_is_used() -> None:
    used, (note,), found = asked(64)  # 12 KB an expert: launches and waits take longer than computing
    assert used
    assert note.startswith("By the profile egpu-x4 a token is modelled to take ")
    assert " ms with cuda, and " in note
    assert note.endswith(f" ms on the CPU alone. Leave {parameter('device')} out, or try both.")
    assert found["used"]
    assert found["accelerator_seconds"] > 1.05 * found["cpu_seconds"]
    assert f"{1000 * found['accelerator_seconds']:.3g} ms with" in note


@pytest.mark.parametrize("hidden", [2048, 4096])
@pytest.mark.parametrize("profile", [None, HERE], ids=["published", "measured"])
def test_nothing_is_said_of_a_gain(hidden: int, profile: Profile | None) -> None:
    used, notes, found = asked(hidden, profile)
    assert used
    assert notes == []
    assert found["accelerator_seconds"] < found["cpu_seconds"]


def test_a_loss_by_what_was_measured_here_leaves_all_to_the_cpu_and_says_how_not_to() -> None:
    used, (note,), found = asked(64, HERE)
    assert not used
    assert note.startswith("By what was measured of this machine a token is modelled to take ")
    assert note.endswith(
        f" on the CPU alone, which does all. To use cuda all the same, say how: {parameter('assign')} two_lane."
    )
    assert not found["used"]


@pytest.mark.parametrize(
    "said", [{"assign": "two_lane"}, {"policy": "fiddler"}, {"n_cpu_moe": 1}, {"cache": "lru"}]
)
def test_whoever_says_how_experts_are_to_be_split_gets_it(said: dict[str, Any]) -> None:
    used, notes, _ = asked(64, HERE, **said)
    assert used
    assert len(notes) == 1


def test_a_simulated_device_is_used_and_the_loss_said() -> None:
    used, (note,), _ = asked(64, device="sim:egpu-x4")
    assert used
    assert note.endswith("It is simulated all the same.")


def test_what_was_measured_elsewhere_or_only_in_part_decides_nothing() -> None:
    figures = {**HERE.figures, "launch": replace(HERE.figures["launch"], label="roofline")}
    assert asked(64, replace(HERE, figures=figures))[0]
    assert asked(64, replace(HERE, machine=None))[0]


def test_beside_a_disk_the_model_of_the_cpu_alone_lacks_reads_and_decides_nothing() -> None:
    assert asked(64, HERE, on_disk=object())[0]


@pytest.mark.parametrize(
    ("on_disk", "options", "slots", "doubted"),
    [
        (None, {}, 1, True),
        (None, {}, 0, False),
        (None, {"assign": "two_lane"}, 1, False),
        (object(), {}, 1, False),
    ],
)
def test_only_plans_that_nobody_asked_for_are_doubted(
    on_disk: object, options: dict[str, Any], slots: int, doubted: bool
) -> None:
    executor: Any = SimpleNamespace(
        steps=None, expected=None, dense_seconds=None, device=SimpleNamespace(name="sim")
    )
    residency: Any = SimpleNamespace(resident_slots=0, scratch_slots=slots)
    loaded: Any = SimpleNamespace(pool=SimpleNamespace(layers=2), telemetry=None, disk=on_disk)
    doubt(executor, residency, loaded, LoadOptions(device="sim:paper", **options), print)
    assert (executor.steps is not None) == doubted
