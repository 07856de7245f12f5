"""Prefetching and its guard, on the modelled clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest

from dali.hardware.cost import ExpertCosts
from dali.policies.guard import SAMPLE, Guard
from dali.policies.prefetch import Forecast
from runtime.foreseen import Foresight, anywhere, executor_of, play
from runtime.tiny_runtime import EXPERTS, LAYERS, TOP_K, Setting

TRIAL = -(-Guard().window * SAMPLE // LAYERS)  # steps until the guard first decides
LONG = 500e-6  # seconds of attention, enough for a copy over the faster links


def on_demand(slots: int = 8, **more: Any) -> Setting:
    return Setting("gpu", "next_gate", "none", slots, **more)


@pytest.mark.parametrize(
    ("setting", "dense", "share"),
    [(on_demand(), LONG, 0.9), (Setting("gpu", "next_gate", "static", 16, scratch=4), 50e-6, 1.0)],
)
def test_it_stays_on_while_it_hides_copies(setting: Setting, dense: float, share: float) -> None:
    executor, states = executor_of(setting, Foresight(), dense), []
    ahead = play(executor, 2 * TRIAL, anywhere, lambda: states.append(executor.guards.prefetch.on))
    assert all(states)
    assert executor._telemetry.total().prefetch_wasted == 0
    without = play(executor_of(setting, None, dense), 2 * TRIAL, anywhere)
    assert ahead < share * without


def low(random: Random, layer: int) -> list[int]:
    return random.sample(range(EXPERTS // 2), TOP_K)


NEVER = {
    "nothing runs on the accelerator": Setting("cpu", "next_gate", "none", 8),
    "what is foreseen is never wanted": on_demand(),
    "and keeps wanted copies waiting": on_demand(profile="egpu-x4", count=4),
}


@pytest.mark.parametrize("case", NEVER)
def test_it_is_switched_off_where_it_never_helps(case: str) -> None:
    foresight, states = Foresight([6, 7]), []
    executor = executor_of(NEVER[case], foresight, LONG)
    play(executor, 3 * TRIAL + 2, low, lambda: states.append(executor.guards.prefetch.on))
    assert states[: TRIAL + 1] == [True] * (TRIAL - 1) + [False] * 2
    assert sum(states) == pytest.approx(
        TRIAL, abs=4
    )  # a rest of two trials' length, and the next trial begins
    assert states[-1]
    assert foresight.calls == pytest.approx(LAYERS * sum(states), abs=2 * LAYERS)
    assert executor._telemetry.total().prefetch_used == 0


def test_switching_it_off_is_worth_the_while() -> None:
    setting = NEVER["and keeps wanted copies waiting"]
    guarded = play(executor_of(setting, Foresight([6, 7]), LONG), 2 * TRIAL, low)
    always = executor_of(setting, Foresight([6, 7]), LONG)
    always.guards.prefetch.note = lambda cost, benefit: None  # type: ignore[method-assign]
    without = play(executor_of(setting, None, LONG), 2 * TRIAL, low)
    assert without < guarded < play(always, 2 * TRIAL, low)


def test_only_what_the_link_has_time_for_is_fetched() -> None:
    fetched = []
    for dense in (1e-6, LONG, 4 * LONG):
        executor = executor_of(on_demand(16), Foresight(), dense)
        play(executor, 20, anywhere)
        fetched.append(executor._telemetry.total().prefetch_used)
    assert 0 <= fetched[0] < fetched[1] < fetched[2]


def test_the_time_for_a_layer_further_ahead_is_longer() -> None:
    found = []
    for distance in (1, 2):
        executor = executor_of(on_demand(16), Foresight())
        executor.prefetcher._predictor.predict = (
            lambda layer, hidden, d=distance: (  # type: ignore[union-attr, method-assign]
                (layer + d, hidden[:, :TOP_K].long() * 0) if layer + d < LAYERS else None
            )
        )
        idles: list[float] = []

        def plan(
            forecasts: Sequence[Forecast], costs: ExpertCosts, seen: list[float] = idles
        ) -> list[tuple[int, int]]:
            seen += [forecast.idle + forecast.view.link_free for forecast in forecasts]
            return []

        executor.policies.prefetch.plan = plan  # type: ignore[method-assign]
        play(executor, 5, anywhere)
        found.append(idles[-1] / executor.period.seconds)
    assert found == pytest.approx([1, 2], rel=0.05)


def test_without_scratch_slots_nothing_is_predicted() -> None:
    foresight = Foresight()
    play(executor_of(Setting("gpu", "next_gate", "static", LAYERS * EXPERTS), foresight), 3, anywhere)
    assert foresight.calls == 0


def test_prediction_takes_modelled_time() -> None:
    def seconds(predict: Callable[[int], float]) -> float:
        executor = executor_of(Setting("cpu", "next_gate", "none", 8), Foresight())
        executor.prefetcher._modelled_seconds = predict
        return play(executor, 4, anywhere)

    extra = seconds(lambda tokens: 1e-3) - seconds(lambda tokens: 0.0)
    assert extra == pytest.approx(4 * (LAYERS - 1) * 1e-3)
