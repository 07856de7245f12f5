"""What policies decide, checked before anybody acts on it: in a live run and in a replay alike.

A policy may be anybody's, and one that evicts the same expert twice would make a replay's cache grow without limit and a live run
fail somewhere else. So each decision is held against what the policy was told. Nothing here is done more often than once a layer
and step, and nearly all of it only where something was decided.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Sequence, Set
from operator import index
from traceback import walk_tb
from typing import Any, NoReturn

from dali.errors import DaliError
from dali.hardware.cost import ExpertCosts
from dali.policies import Policies
from dali.policies.cache import Swap
from dali.policies.plan import LayerPlan, ResidencyView
from dali.policies.prefetch import Forecast
from dali.policies.signals import Signals

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MEND = "Mend it; docs/POLICIES.md says what a policy may decide."


class Decisions:
    """The decisions of `policies` for a model of `layers` MoE layers with `experts` routed experts.

    DaliError, with the policy's file and line, the layer and the step: it raised, or decided what cannot be done. What dali's own
    policies raise passes as it is.
    """

    def __init__(self, policies: Policies, layers: int, experts: int) -> None:
        self.policies = policies
        self.layers = layers
        self.experts = experts
        self._observed = [0] * layers  # steps each layer is through

    def initial(self, layer: int) -> tuple[int, ...]:
        """The layer's residents to start with."""
        initial = self.policies.cache.initial
        try:
            chosen = tuple(initial(layer))
        except Exception as error:
            blame("cache", initial, error, f"layer {layer}, at the start")
        if fault := initial_fault(chosen, self.experts):
            raise wrong("cache", initial, fault, f"layer {layer}, at the start")
        return chosen

    def assign(
        self, layer: int, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts
    ) -> LayerPlan:
        """Where the layer's experts run. It may be asked more than once in a step, for views that might have been."""
        assign = self.policies.assign.assign
        try:
            plan = assign(layer, workload, view, costs)
        except Exception as error:
            blame("assign", assign, error, self._when(layer))
        if fault := plan_fault(plan, workload, view):
            raise wrong("assign", assign, fault, self._when(layer))
        return plan

    def observe(
        self,
        layer: int,
        workload: Sequence[int],
        resident: Set[int],
        fetched: Collection[int],
        protected: Set[int],
        signals: Signals | None,
        residents: Callable[[int], Set[int]],
    ) -> Sequence[Swap]:
        """The swaps after the layer's step; `residents(layer)`: of any layer."""
        observe = self.policies.cache.observe
        try:
            swaps = observe(layer, workload, resident, fetched, protected, signals)
        except Exception as error:
            blame("cache", observe, error, self._when(layer))
        # An empty list is nearly every answer.
        if swaps != [] and (
            fault := swaps_fault(
                swaps, layer, self.layers, self.experts, resident, fetched, protected, residents
            )
        ):
            raise wrong("cache", observe, fault, self._when(layer))
        self._observed[layer] += 1
        return swaps

    def foresee(
        self, layer: int, workload: Sequence[int], signals: Signals | None
    ) -> Sequence[tuple[int, Sequence[float]]]:
        """What a prefetch policy without a predictor expects of later layers."""
        foresee = self.policies.prefetch.foresee
        try:
            forecasts = foresee(layer, workload, signals)
            if forecasts and (fault := forecasts_fault(forecasts, layer, self.layers, self.experts)):
                raise wrong("prefetch", foresee, fault, self._when(layer, 0))
        except Exception as error:
            blame("prefetch", foresee, error, self._when(layer, 0))
        return forecasts

    def prefetch(
        self, layer: int, forecasts: Sequence[Forecast], costs: ExpertCosts, free: int
    ) -> Sequence[tuple[int, int]]:
        """(layer, expert) to copy ahead into `free` slots, decided while `layer` runs."""
        plan = self.policies.prefetch.plan
        try:
            chosen = plan(forecasts, costs)
        except Exception as error:
            blame("prefetch", plan, error, self._when(layer, 0))
        if chosen != [] and (fault := prefetch_fault(chosen, forecasts, self.experts, free)):
            raise wrong("prefetch", plan, fault, self._when(layer, 0))
        return chosen

    def _when(self, layer: int, ahead: int = 1) -> str:
        """`ahead` is 0 after the layer's step was observed, which counts it."""
        return f"layer {layer}, step {self._observed[layer] + ahead}"


def initial_fault(chosen: Sequence[int], experts: int) -> str | None:
    """What is wrong with a layer's residents to start with."""
    for expert in chosen:
        if not is_index(expert, experts):
            return f"starts with {expert!r}, which is no expert: they are 0 to {experts - 1}"
    twice = _twice(chosen)
    return None if twice is None else f"starts with expert {twice} twice"


def plan_fault(plan: LayerPlan, workload: Sequence[int], view: ResidencyView) -> str | None:
    """What is wrong with a layer's plan."""
    if type(plan) is not LayerPlan or not type(plan.cpu) is type(plan.gpu) is type(plan.fetch) is tuple:
        return f"returned {_shown(plan)}, which is no LayerPlan of three tuples"
    cpu, gpu, fetch = plan
    if not _covers(cpu + gpu, workload):
        return _misplaced(cpu + gpu, workload)
    resident = view.resident
    here = gpu[: len(gpu) - len(fetch)] if fetch else gpu
    if not resident >= set(here):
        waiting = [expert for expert in here if expert not in resident]
        for expert in waiting:
            if expert not in view.in_flight:
                return f"runs expert {expert} on the accelerator, where it is not, and does not fetch it"
        if waiting != [expert for expert in view.landing() if expert in waiting] or waiting != list(
            here[len(here) - len(waiting) :]
        ):
            return f"launches {here}, not residents first and then experts in flight as they land"
    if fetch:
        if gpu[len(gpu) - len(fetch) :] != fetch:
            return f"launches {gpu}, which does not end in what it fetches, {fetch}"
        if not view.slots:
            return f"fetches {len(fetch)} experts where there is no scratch slot to fetch into"
        if not (resident.isdisjoint(fetch) and view.in_flight.keys().isdisjoint(fetch)):
            wasted = next(expert for expert in fetch if expert in resident or expert in view.in_flight)
            return f"fetches expert {wasted}, which is there or on its way"
    return None


def swaps_fault(
    swaps: Sequence[Swap],
    layer: int,
    layers: int,
    experts: int,
    resident: Set[int],
    fetched: Collection[int],
    protected: Set[int],
    residents: Callable[[int], Set[int]],
) -> str | None:
    """What is wrong with the swaps of a layer's step; `residents(layer)`: of any layer."""
    if not isinstance(swaps, list | tuple) or not all(type(swap) is Swap for swap in swaps):
        return f"returned {_shown(swaps)}, which is no list of Swap"
    evicted, loaded = set(), set()
    for evict, load, donor in swaps:
        home = layer if donor is None else donor
        if not is_index(home, layers):
            return f"takes a slot of layer {home!r}, of {layers} (0 to {layers - 1})"
        for expert in (evict, load):
            if not is_index(expert, experts):
                return f"swaps {expert!r}, which is no expert: they are 0 to {experts - 1}"
        if home != layer and load not in fetched:
            return f"takes a slot of layer {home} for expert {load}, which was not fetched"
        if evict not in (resident if home == layer else residents(home)):
            return f"evicts expert {evict} of layer {home}, which is no resident"
        if (home, evict) in evicted:
            return f"evicts expert {evict} of layer {home} twice"
        if load in resident:
            return f"loads expert {load}, which is a resident already"
        if load in loaded:
            return f"loads expert {load} twice"
        if load in protected or (home == layer and evict in protected):
            return f"swaps expert {load if load in protected else evict}, which is protected"
        evicted.add((home, evict))
        loaded.add(load)
    return None


def forecasts_fault(
    forecasts: Sequence[tuple[int, Sequence[float]]], layer: int, layers: int, experts: int
) -> str | None:
    """What is wrong with forecasts made while `layer` runs."""
    for target, expected in forecasts:
        if not is_index(target, layers) or target <= layer:
            return f"foresees layer {target!r}, which is none of those after layer {layer} of {layers}"
        if len(expected) != experts:
            return f"foresees the workload of {len(expected)} experts, of {experts}"
    return None


def prefetch_fault(
    chosen: Sequence[tuple[int, int]], forecasts: Sequence[Forecast], experts: int, free: int
) -> str | None:
    """What is wrong with experts to copy ahead into `free` slots."""
    if not isinstance(chosen, list | tuple) or not all(
        isinstance(one, tuple) and len(one) == 2 for one in chosen
    ):
        return f"returned {_shown(chosen)}, which is no list of (layer, expert)"
    if len(chosen) > free:
        return f"asks for {len(chosen)} experts where {free} slots are free"
    views = {forecast.layer: forecast.view for forecast in forecasts}
    for target, expert in chosen:
        if not is_index(target, sys.maxsize) or target not in views:
            return f"asks for an expert of layer {target!r}, of which it was told nothing"
        if not is_index(expert, experts):
            return f"asks for {expert!r}, which is no expert: they are 0 to {experts - 1}"
        if expert in views[target].resident or expert in views[target].in_flight:
            return f"asks for expert {expert} of layer {target}, which is there or on its way"
    twice = _twice(chosen)
    return None if twice is None else f"asks for expert {twice[1]} of layer {twice[0]} twice"


def wrong(kind: str, function: Any, fault: str, when: str) -> DaliError:
    """The error for a decision that cannot be done."""
    return DaliError(f"The {kind} policy at {place(function)} {fault} ({when}).", MEND)


def blame(kind: str, function: Any, error: Exception, when: str) -> NoReturn:
    """Say that a policy raised, and where. Dali's own errors, and whatever its own policies raise, are raised as they are."""
    file = _file(function)
    if isinstance(error, DaliError) or ours(function):
        raise error
    line = line_of(error, file)
    where = f"{shown(file)}, line {line}," if line else place(function)
    raise DaliError(f"The {kind} policy at {where} raises {reason(error)} ({when}).", MEND) from error


def is_index(value: Any, count: int) -> bool:
    """Whether it is a whole number below `count`; numpy's are no int, and do as well. True and False are none: they say that
    something else was meant."""
    try:
        return not isinstance(value, bool) and 0 <= index(value) < count
    except Exception:  # whatever it is
        return False


def ours(function: Any) -> bool:
    """Whether it is dali's own."""
    return _file(function).startswith(PACKAGE)


def line_of(error: BaseException, file: str) -> int | None:
    """The line of a file in which an exception came up, or what it called there; None where it was not in that file."""
    lines = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    return lines[-1] if lines else None


def place(function: Any) -> str:
    """Where a function is written: its file and the line it begins in; for one that a policy inherits from dali, where the policy
    begins."""
    file, code = _file(function), getattr(function, "__code__", None)
    if code is not None and code.co_filename == file:
        return f"{shown(file)}, line {code.co_firstlineno},"
    parts = [
        getattr(part, "__code__", None)
        for part in vars(type(getattr(function, "__self__", function))).values()
    ]
    lines = [part.co_firstlineno for part in parts if part is not None and part.co_filename == file]
    return f"{shown(file)}, line {min(lines, default=1)},"


def _file(function: Any) -> str:
    """The file of a function or, for a method, of its object's class; a policy's methods may be inherited from dali's."""
    owner = getattr(function, "__self__", None)
    if owner is None and hasattr(function, "__code__"):
        return str(function.__code__.co_filename)
    module = type(function if owner is None else owner).__module__
    return str(getattr(sys.modules.get(module), "__file__", None) or module)


def shown(file: str) -> str:
    """A file's name as a user would write it: from here on where it lies below, else in full."""
    here = os.getcwd() + os.sep
    return file.removeprefix(here) if file.startswith(here) else file


def reason(error: BaseException) -> str:
    """An exception's kind and what it says, on one line."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__} ({said})" if said else type(error).__name__


def _covers(placed: tuple[int, ...], workload: Sequence[int]) -> bool:
    """Whether each active expert is placed once. It is asked of every layer in every step, so it looks at what is placed, not at
    all experts one by one."""
    many = len(placed)
    if many != len(workload) - workload.count(0) or many != len(set(placed)) or bool in map(type, placed):
        return False
    try:
        return not many or (min(placed) >= 0 and all(map(workload.__getitem__, placed)))
    except (IndexError, TypeError):  # no expert, or no number
        return False


def _misplaced(placed: tuple[int, ...], workload: Sequence[int]) -> str:
    active = {expert for expert, tokens in enumerate(workload) if tokens}
    twice = _twice(placed)
    if twice is not None:
        return f"places expert {twice!r} twice"
    for expert in placed:
        if expert not in active or not is_index(expert, len(workload)):
            return f"places {expert!r}, which is no expert that a token was routed to"
    return f"places {len(placed)} experts and leaves out {sorted(active.difference(placed))}"


def _twice(things: Iterable[Any]) -> Any:
    """The first of them that has been there before; None where all are different."""
    seen = set()
    for one in things:
        if one in seen:
            return one
        seen.add(one)
    return None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
