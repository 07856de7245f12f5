"""The compiled planner beside the Python parts: the same decisions in every step, over slots whose copies land as a script
says."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dali.compiled import library
from dali.devices.cuda import GpuSlots
from dali.errors import DaliError
from dali.hardware.cost import ExpertCosts
from dali.kernels import native
from dali.policies import Policies
from dali.policies.assign import greedy, two_lane
from dali.policies.cache import fading
from dali.policies.guard import Guards
from dali.policies.prefetch import ridge
from dali.runtime import executor, gpu, prefetch
from dali.runtime.decoding_steps import MOST_TOKENS, DecodingSteps
from dali.runtime.gpu import GpuExecutor
from dali.runtime.loans import Loans
from dali.runtime.planner import plans
from dali.runtime.residency import Residency
from dali.store.expert_pool import Lease
from dali.telemetry import Telemetry

pytestmark = pytest.mark.skipif(not native.enabled(), reason="needs the compiled planner")
RECORD = 16  # bytes


class InPython:
    """Policies that decide as the defaults and are none, so that the Python parts plan."""

    class Assign(two_lane.Policy): ...

    class Prefetch(ridge.Policy): ...

    class Cache(fading.Policy): ...


class Compiled:
    Assign, Prefetch, Cache = two_lane.Policy, ridge.Policy, fading.Policy


class Clock:
    def __init__(self) -> None:
        self.now = 1e3

    def perf_counter(self) -> float:
        return self.now


@dataclass
class Case:
    """What one run is about; seconds are those of one copy."""

    seed: int
    layers: int = 4
    experts: int = 16
    top_k: int = 3
    residents: int = 5  # a layer
    scratch: int = 6
    cpu: float = 0.7  # an expert's time on the CPU
    contended: float = 1.3
    between: float = 2.0  # from layer to layer, in the mean
    predicting: float = 0.01
    foreseen: float = 0.7  # share of predicted ids that come true
    steps: int = 300
    landing: float = 1.0  # a copy's time, as it comes out
    skew: float = 0.4  # of the routing
    shifting: float = 0.02  # how likely other experts become popular in a step
    in_ram: float = 1.0  # share of the experts; the others are on disk

    def holds(self, layer: int, expert: int) -> bool:
        return Random(f"{self.seed} {layer} {expert}").random() < self.in_ram


class ScriptedLayers:
    """Stands in for the native layers: knows which copy is over when, and that launches find what they read."""

    slower = link_slower = 1.0  # the CPU and the link, than the profile says

    def __init__(self, case: Case, costs: ExpertCosts, clock: Clock) -> None:
        self.random, self.case, self.costs, self.clock = Random(case.seed), case, costs, clock
        self.holds: dict[int, tuple[int, int]] = {}  # by slot
        self.ends: list[float] = []  # of copies, ascending
        self.demanded = 0  # of them, by the last step or before
        self.routed: tuple[Sequence[int], Sequence[int]] = ((), ())  # of the step that comes, and ahead
        self.layer = 0
        self.plans: list[Any] = []
        self.fails = False

    def copy(self, layer: int, expert: int, slot: int) -> None:
        start = max(self.ends[-1] if self.ends else 0.0, self.clock.now)
        self.ends.append(start + self.case.landing * self.random.choice([0.5, 1.0, 1.0, 3.0]))
        self.holds[slot] = layer, expert

    def place(self, fetches) -> None:
        for fetch in fetches:
            self.copy(*fetch)
        self.ends = [0.0] * len(self.ends)

    def landed(self) -> int:
        return bisect_right(self.ends, self.clock.now)

    def begin(self, layer: int, *rest: int) -> None:
        self.layer = layer

    def routing(self, count: int, ahead: int) -> tuple[Sequence[int], Sequence[int]]:
        return self.routed

    def execute(self, cpu, launches, fetches, out) -> float:
        if self.fails:
            self.fails = False
            raise library.GpuFailure("an illegal memory access was encountered")
        for experts, slots, fetched in launches:
            for expert, slot in zip(experts, slots, strict=True):
                if fetched:
                    self.copy(self.layer, expert, slot)
                assert self.holds[slot] == (self.layer, expert)
        if any(fetched for _, _, fetched in launches):
            self.demanded = len(self.ends)
        for fetch in fetches:
            self.copy(*fetch)
        launched = [(experts, fetched) for experts, _, fetched in launches]
        self.plans.append((cpu, launched, [fetch[:2] for fetch in fetches]))
        tokens = Counter(self.routed[0])
        return self.slower * sum(self.costs.cpu[tokens[expert]] for expert in cpu)

    def timed(self) -> tuple[int, float]:
        return 1, self.link_slower * self.costs.link_contended

    def step(self, planner, layer, tokens, x, ids, weights, ahead, count, queue, later, seconds, out) -> Any:
        self.layer = layer
        routed, foreseen = self.routed
        foreseen = foreseen if count else []
        *plan, counts = planner.plan(
            layer, routed, later, foreseen, seconds, self.clock.now, self.landed(), self.case.holds
        )
        spent = self.execute(*plan, out)
        return (*counts, 0.0, 0.0, spent, 0.0, planner.planned, planner.all_on_cpu)

    def recover(self) -> None:
        self.ends.clear()
        self.demanded = 0
        self.holds.clear()

    def finished(self) -> float:
        """When what the last step demanded is over."""
        return self.ends[self.demanded - 1] if self.demanded else 0.0


class Predictor:
    """Predicts what the script says, for the next layer, in the time it says."""

    def __init__(self, case: Case, clock: Clock) -> None:
        self.case, self.clock = case, clock
        self.ahead: torch.Tensor | None = None

    def predict(self, layer, hidden):
        self.clock.now += self.case.predicting
        return None if self.ahead is None else (layer + 1, self.ahead)


class Side:
    """One executor with layers of its own."""

    def __init__(self, case: Case, costs: ExpertCosts, kinds: Any) -> None:
        self.clock = Clock()
        self.layers = ScriptedLayers(case, costs, self.clock)
        stand_in = SimpleNamespace(name="a stand-in", queue=lambda: 0, hand_over=lambda: None)
        slots = case.layers * case.residents + case.scratch
        device: Any = GpuSlots(stand_in, lambda slots: self.layers, RECORD, slots * RECORD)  # type: ignore[arg-type]
        device.now = self.clock.perf_counter
        layout: Any = SimpleNamespace(record_bytes=RECORD, weight_bytes=RECORD - 1)
        pool: Any = SimpleNamespace(
            layouts=[layout] * case.layers,
            layers=case.layers,
            experts=case.experts,
            whole_layers=True,
            lease=lambda layer, experts: Lease(layout, []),
            note=lambda layer, experts: [expert for expert in experts if not case.holds(layer, expert)],
            holds=case.holds,
        )
        links = costs.link, costs.link_contended
        residency = Residency(
            device, Loans(device, pool), case.layers, RECORD, slots, case.layers * case.residents, links
        )
        cache = kinds.Cache(case.layers, case.experts, case.residents, case.seed)
        self.telemetry = Telemetry()
        model: Any = SimpleNamespace(costs=costs, activation_copy=lambda tokens: 0.0)
        self.predictor = Predictor(case, self.clock)
        policies = Policies(kinds.Assign(), kinds.Prefetch(), cache)
        predictor: Any = self.predictor if case.scratch else None
        self.executor = GpuExecutor(device, pool, residency, policies, predictor, model, self.telemetry)

    def step(
        self, monkeypatch, now: float, layer: int, ids: torch.Tensor, ahead: torch.Tensor | None
    ) -> None:
        for module in (gpu, prefetch, executor):
            monkeypatch.setattr(module, "time", self.clock)
        self.clock.now = now
        self.predictor.ahead = ahead
        self.layers.routed = ids.flatten().tolist(), [] if ahead is None else ahead.flatten().tolist()
        self.executor.run(layer, torch.zeros(len(ids), 4), ids, torch.zeros(ids.shape))

    @property
    def counters(self) -> dict[str, Any]:
        return asdict(self.telemetry) | {"workload": self.telemetry.workload.tolist()}


class Routing:
    """Skewed, by layer, and shifting: now and then other experts are the popular ones."""

    def __init__(self, case: Case) -> None:
        self.case, self.random = case, Random(~case.seed)
        self.shift()

    def shift(self) -> None:
        popular = [2.0 ** (-self.case.skew * place) for place in range(self.case.experts)]
        self.popular = [self.random.sample(popular, len(popular)) for _ in range(self.case.layers)]

    def token(self, layer: int) -> list[int]:
        chosen: list[int] = []
        while len(chosen) < self.case.top_k:
            (expert,) = self.random.choices(range(self.case.experts), self.popular[layer])
            if expert not in chosen:
                chosen.append(expert)
        return chosen

    def step(self) -> list[torch.Tensor]:
        """The ids of each layer."""
        if self.random.random() < self.case.shifting:
            self.shift()
        tokens = self.random.choice([1, 1, 1, 1, 2, 3, 8, 40])
        return [torch.tensor([self.token(layer) for _ in range(tokens)]) for layer in range(self.case.layers)]

    def foresee(self, ids: torch.Tensor) -> torch.Tensor:
        guesses = [
            [
                e if self.random.random() < self.case.foreseen else self.random.randrange(self.case.experts)
                for e in token
            ]
            for token in ids.tolist()
        ]
        return torch.tensor(guesses)


def costs_of(case: Case) -> ExpertCosts:
    cpu = [0.0] + [max(case.cpu, case.cpu * 0.3 * tokens) for tokens in range(1, 64)]
    accelerator = [0.0] + [max(0.06, 0.013 * tokens) for tokens in range(1, 64)]
    return ExpertCosts(cpu, accelerator, 1.0, case.contended, 0.02, 0.05)


def states(guards: Guards, exact: bool) -> tuple[Any, Any]:
    """Of both, as the planner has them. Python's own sum rounds otherwise from 3.12 on."""
    exact = exact and sys.version_info < (3, 12)
    found = []
    for guard in (guards.prefetch, guards.swap):
        seconds = (guard._cost, guard._benefit)
        steps = (guard.on, guard._trial, guard._next_rest, guard._resting, guard._steps)
        found.append((*steps, *(seconds if exact else map(pytest.approx, seconds))))
    return found[0], found[1]


def run_both(
    case: Case, monkeypatch, failing: float = 0.0, prepare: Callable[[Side], None] = lambda side: None
) -> Counter[str]:
    """Steps both sides side by side; returns how often what happened."""
    seen: Counter[str] = Counter()
    costs, routing = costs_of(case), Routing(case)
    reference, compiled = Side(case, costs, InPython), Side(case, costs, Compiled)
    assert reference.executor.planner is None
    assert compiled.executor.planner is not None
    prepare(reference)
    prepare(compiled)
    now = reference.clock.now
    for _ in range(case.steps):
        ids = routing.step()
        for layer in range(case.layers):
            ahead = routing.foresee(ids[layer + 1]) if layer + 1 < case.layers else None
            fails = routing.random.random() < failing
            seen["unsettled"] += bool(reference.executor.residency.unsettled(layer))
            for side in (reference, compiled):
                side.layers.fails = fails
                if fails:
                    with pytest.raises(DaliError, match="illegal memory access"):
                        side.step(monkeypatch, now, layer, ids[layer], ahead)
                else:
                    side.step(monkeypatch, now, layer, ids[layer], ahead)
            if fails:
                seen["failures"] += 1
                break
            plan = reference.layers.plans.pop()
            assert compiled.layers.plans.pop() == plan
            guards = reference.executor.guards
            wanted = guards.prefetch.on and not reference.executor.prefetcher.rests
            assert compiled.executor.planner.prefetches == wanted
            given = compiled.executor.expected.now is compiled.executor.expected.given  # else sums may round
            assert compiled.executor.planner.guards == states(guards, exact=given)
            assert compiled.executor.planner.residents(layer) == sorted(
                reference.executor.residency.residents(layer)
            )
            seen["prefetching rests"] += not guards.prefetch.on
            seen["swapping rests"] += not guards.swap.on
            seen["copied swaps"] += any(fetch[0] == layer for fetch in plan[2])
            seen["both pay"] += guards.prefetch.on and guards.swap.on and not guards.prefetch._trial
            busy = case.between * routing.random.choice([0.1, 1.0, 1.9]) + case.predicting
            now = max(now + busy, reference.layers.finished())
        if not seen["failures"]:  # what a failed step counts is nobody's business
            assert compiled.counters == reference.counters
    seen.update({name: getattr(reference.telemetry.total(), name) for name in COUNTED})
    return seen


COUNTED = ("resident", "prefetched", "fetched", "cpu", "prefetch_late", "prefetch_wasted", "swaps")
CASES = [
    Case(0, steps=900),
    Case(1, predicting=3.0, steps=900),  # which never pays
    Case(2, scratch=2, cpu=3.0),
    Case(3, scratch=24, cpu=6.0, experts=40, top_k=6, residents=12),  # copies go in groups
    Case(4, landing=6.0, between=4.0, steps=900),  # copies end long after they were expected to
    Case(5, residents=0, scratch=9, cpu=2.0),
    Case(6, scratch=0),
    Case(7, contended=4.0, foreseen=0.1, between=6.0, steps=900),
    Case(8, layers=1, residents=8, scratch=3),
    Case(9, residents=16, scratch=1),  # all there
    Case(10, cpu=0.2, between=8.0, predicting=0.1, steps=900),  # verdicts within the guard's margin
    Case(11, layers=2, cpu=0.3, landing=20.0, between=6.0),
    Case(12, layers=2, cpu=1.2, between=0.5, skew=0.05, steps=2000),
    Case(13, layers=2, cpu=3.0, between=0.3, skew=0.3, shifting=0.2, top_k=1, scratch=3, steps=2000),
    Case(
        14,
        layers=2,
        cpu=1.0,
        between=0.6,
        skew=0.3,
        shifting=0.3,
        top_k=2,
        scratch=1,
        foreseen=0.0,
        steps=2000,
    ),
    Case(
        15,
        layers=1,
        cpu=2.0,
        between=0.6,
        skew=0.3,
        shifting=0.3,
        top_k=2,
        scratch=1,
        foreseen=0.0,
        steps=4000,
    ),
    Case(18, in_ram=0.5),
    Case(19, in_ram=0.3, scratch=24, cpu=6.0, experts=40, top_k=6, residents=12),
]


HAPPENS = {
    0: ("prefetched", "fetched", "prefetch_late", "prefetch_wasted", "copied swaps", "both pay"),
    1: ("prefetching rests",),
    4: ("unsettled",),
    18: ("prefetched", "fetched", "copied swaps"),
    13: ("swapping rests", "unsettled"),
    14: ("swapping rests", "prefetching rests"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.seed))
def test_every_step_is_decided_as_in_python(case, monkeypatch):
    seen = run_both(case, monkeypatch)
    assert all(seen[what] for what in HAPPENS.get(case.seed, ()))


def test_after_failures_every_step_is_decided_as_in_python(monkeypatch):
    seen = run_both(Case(16, cpu=1.5), monkeypatch, failing=0.03)
    assert seen["failures"] > 10


def test_only_the_defaults_themselves_are_decided_so():
    def policies(kinds: Any = Compiled, **options: Any) -> Policies:
        return Policies(kinds.Assign(), kinds.Prefetch(**options), kinds.Cache(1, 8, 2))

    assert plans(policies(), guarded=True)
    assert plans(policies(distance=2), guarded=True)
    assert not plans(policies(), guarded=False)
    assert not plans(policies(count=3), guarded=True)
    for kind in ("Assign", "Prefetch", "Cache"):
        kinds = SimpleNamespace(Assign=Compiled.Assign, Prefetch=Compiled.Prefetch, Cache=Compiled.Cache)
        setattr(kinds, kind, getattr(InPython, kind))
        assert not plans(policies(kinds), guarded=True)
    others = policies()
    others.assign = greedy.Policy()
    assert not plans(others, guarded=True)
    deeper = policies()
    deeper.prefetch.depth = 2
    assert not plans(deeper, guarded=True)


class Chance:
    """Leaves a third of all decoding steps to the CPU."""

    def __init__(self) -> None:
        self.random, self.on_cpu, self.left = Random(5), False, 0
        self.modelled: list[float] = []

    def step(self, seconds: float, modelled: float) -> bool:
        self.on_cpu = self.random.random() < 1 / 3
        self.left += self.on_cpu
        self.modelled.append(modelled)
        return False


def test_steps_that_are_left_to_the_cpu_are_decided_as_in_python(monkeypatch):
    doubts = []

    def doubted(side: Side) -> None:
        doubt: Any = Chance()
        doubts.append(doubt)
        executor = side.executor
        executor.steps = DecodingSteps(
            doubt, 4, executor.expected, lambda tokens: 0.1 * tokens, side.telemetry, "", print
        )

    seen = run_both(Case(20, contended=2.0, scratch=9, cpu=1.5), monkeypatch, prepare=doubted)
    assert seen["prefetched"] > 0
    assert seen["swaps"] > 0
    assert doubts[0].left > 50
    assert doubts[0].modelled == pytest.approx(doubts[1].modelled)


def test_a_step_that_is_left_to_the_cpu_moves_nothing(monkeypatch):
    case = Case(21, scratch=9, cpu=1.5)
    side, routing, now = Side(case, costs_of(case), Compiled), Routing(case), 1e3
    steps: Any = SimpleNamespace(begin=lambda tokens: None, add=lambda *layer: None)
    side.executor.steps = steps
    for step in range(60):
        steps.on_cpu = step % 2 == 1
        for layer, ids in enumerate(routing.step()):
            now = max(now + case.between, side.layers.finished())
            ahead = routing.foresee(ids) if layer + 1 < case.layers else None
            side.step(monkeypatch, now, layer, ids, ahead)
            if steps.on_cpu:
                assert not side.executor.planner.prefetches
                cpu, launches, fetches = side.layers.plans[-1]
                assert cpu == sorted(set(ids.flatten().tolist()))
                assert launches == fetches == []
    assert any(launches for _, launches, _ in side.layers.plans)


def test_a_step_that_is_cut_has_no_piece_that_looks_like_decoding():
    side, told = Side(Case(0), costs_of(Case(0)), Compiled), []
    steps: Any = SimpleNamespace(on_cpu=False, begin=told.append, add=lambda *layer: None)
    side.executor.steps = steps
    side.layers.routed = [1, 2, 3], []  # whatever they are
    ids = torch.zeros(GpuExecutor.most_tokens + 1, 3, dtype=torch.int64)
    out = side.executor.run(0, torch.zeros(len(ids), 4), ids, torch.zeros(ids.shape))
    assert out.shape == (len(ids), 4)
    assert told == [257, 256]
    assert min(told) > MOST_TOKENS


@pytest.mark.parametrize(("cpu", "link"), [(4.0, 1.0), (1.0, 3.0), (0.6, 0.4)])
def test_what_is_observed_corrects_both_alike(monkeypatch, cpu, link):
    sides = []

    def slower(side: Side) -> None:
        sides.append(side)
        side.layers.slower, side.layers.link_slower = cpu, link

    run_both(Case(22), monkeypatch, prepare=slower)
    for side in sides:
        assert side.executor.expected.cpu.applied == pytest.approx(cpu, rel=0.01)
        uncontended = min(link * 1.3, 1.0) if link < 1 else link
        assert side.executor.expected.link.applied == pytest.approx(uncontended, rel=0.01)


def alone(side: Side, case: Case, monkeypatch) -> list[Any]:
    """The plans of one side, whatever they do."""
    routing, now = Routing(case), 1e3
    for _ in range(case.steps):
        for layer, ids in enumerate(routing.step()):
            now = max(now + case.between, side.layers.finished())
            side.step(monkeypatch, now, layer, ids, None)
    return side.layers.plans


def test_corrected_times_are_planned_with_as_if_they_had_been_given(monkeypatch):
    case = Case(3)
    costs = costs_of(case)
    corrected = Side(case, costs, Compiled)
    corrected.executor.planner.correct(3.0, 2.0)
    slower = replace(
        costs,
        cpu=[3.0 * seconds for seconds in costs.cpu],
        link=2.0 * costs.link,
        link_contended=2.0 * costs.link_contended,
    )
    given = Side(case, slower, Compiled)
    plans = alone(corrected, case, monkeypatch)
    assert plans == alone(given, case, monkeypatch)
    assert plans != alone(Side(case, costs, Compiled), case, monkeypatch)
    on_cpu = plans[-1][0]
    assert corrected.executor.planner.planned == pytest.approx(given.executor.planner.planned / 3.0)
    assert (corrected.executor.planner.planned > 0) == bool(on_cpu)


def test_a_cpu_slower_than_planned_gets_less_to_do_and_plans_then_stay(monkeypatch):
    case = Case(4, steps=600)
    as_planned, slow = (Side(case, costs_of(case), Compiled) for _ in range(2))
    slow.layers.slower = 4.0
    usual, fewer = (
        sum(len(cpu) for cpu, *_ in alone(side, case, monkeypatch)[-800:]) for side in (as_planned, slow)
    )
    assert as_planned.executor.expected.cpu.applied == 1.0
    assert slow.executor.expected.cpu.applied == pytest.approx(4.0, rel=0.01)
    assert fewer < usual


def test_what_the_planner_owns_nobody_else_is_asked():
    side = Side(Case(0), costs_of(Case(0)), Compiled)
    for name in ("residency", "replacement", "guards", "decisions", "period"):
        assert not hasattr(side.executor, name)


def test_an_expert_that_is_not_there_is_refused():
    side = Side(Case(0), costs_of(Case(0)), Compiled)
    with pytest.raises(IndexError):
        side.executor.planner.plan(0, [16], 0, [], 0.0, 0.0, 0)
