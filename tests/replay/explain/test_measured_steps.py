"""Steps on the CPU, as the counters before and after tell of them."""

from __future__ import annotations

import pytest

from dali.replay.explain import events, picture
from dali.replay.explain.measured import Watch
from dali.replay.explain.summary import summary
from dali.telemetry import DiskCounters, Telemetry

TOP_K = 2


class Model:
    """Two layers of four experts, of which each step computes some."""

    def __init__(self) -> None:
        self.telemetry = Telemetry()
        self.telemetry.count_experts(2, 4)
        self.misses = [0, 0]
        nothing = dict.fromkeys(DiskCounters.__dataclass_fields__, 0)
        self.telemetry.follow_disk(
            lambda: DiskCounters(**nothing | {"hits": (0, 0), "misses": tuple(self.misses)})
        )

    def step(self, experts: list[list[int]], read: int = 0) -> None:
        for layer, chosen in enumerate(experts):
            for expert in chosen:
                self.telemetry.workload[layer, expert] += 1
            self.telemetry.layer(layer).seconds += 1e-3 * (layer + 1)
        self.misses[1] += read


@pytest.fixture
def watched() -> Watch:
    model = Model()
    model.step([[0, 1], [2, 3]])  # before anybody looked
    watch = Watch(model.telemetry, TOP_K)
    watch(lambda: model.step([[0, 1, 0, 3], [1, 2, 2, 3]], read=2))
    watch(lambda: None)  # nothing was computed
    watch(lambda: model.step([[2, 3], [0, 1]]))
    return watch


def test_each_step_has_its_own_experts_tokens_and_reads(watched: Watch) -> None:
    assert watched.begun == 2
    assert [(step.step, step.layer, step.tokens) for step in watched.steps] == [
        (1, 0, 2),
        (1, 1, 2),
        (2, 0, 1),
        (2, 1, 1),
    ]
    assert [step.counts["cpu"] for step in watched.steps] == [3, 3, 2, 2]
    assert [step.counts["read"] for step in watched.steps] == [0, 2, 0, 0]
    assert [step.seconds for step in watched.steps] == pytest.approx([1e-3, 2e-3] * 2)
    assert watched.steps[0].slices[0].told["experts"] == {0: 2, 1: 1, 3: 1}


def test_a_failed_step_is_none(watched: Watch) -> None:
    with pytest.raises(ZeroDivisionError):
        watched(lambda: 1 / 0)
    assert watched.begun == 2


def test_they_are_shown_as_others_are(watched: Watch) -> None:
    told = summary(list(watched.steps), watched.begun, "measured").splitlines()
    assert told[1].split() == ["layer", "experts", "on", "CPU", "read", "ms", "CPU", "ms"]
    assert told[4].split() == ["all", "10", "10", "2", "6.000", "6.000"]
    assert "measured; step 2, layers 0 to 1" in picture.picture(list(watched.steps), "measured")
    assert events.explained(list(watched.steps), "x").count('"ph": "X"') == 4 + 4 + 2
