"""One switch turns compiled code off, all of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dali
import dali.kernels.native  # what it calls as it is imported is called before anything is noted
from dali import compiled
from dali.errors import UsageError
from dali.hardware.cost import ExpertCosts
from dali.policies.assign.two_lane import two_lane
from dali.policies.plan import ResidencyView

needs_compiled = pytest.mark.skipif(not compiled.AVAILABLE, reason="the kernels were not compiled")
COSTS = ExpertCosts(cpu=[0, 4, 6], gpu=[0, 1, 2], link=5, link_contended=5, launch=0)
TYPES = {"Dtype"}  # asked for when modules are imported


@pytest.fixture(autouse=True)
def _switch_restored() -> Iterator[None]:
    yield
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv(compiled.VARIABLE, raising=False)
        compiled.enabled()


def _guard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Has everything of the library that can be called note its name."""
    called: list[str] = []
    for name, made in list(vars(compiled.library).items()):
        if callable(made) and not name.startswith("_") and name not in TYPES:

            def noted(*given: object, _name: str = name, _made: object = made, **named: object) -> object:
                called.append(_name)
                return _made(*given, **named)  # type: ignore[operator]

            monkeypatch.setattr(compiled.library, name, noted)
    return called


@needs_compiled
@pytest.mark.parametrize("device", ["cpu", "sim:paper"])
def test_torch_means_that_nothing_compiled_is_called(
    device: str, dali_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = _guard(monkeypatch)
    for choice, expected in (("torch", False), ("", True)):
        monkeypatch.setenv(compiled.VARIABLE, choice)
        called.clear()
        llm = dali.load(str(dali_tiny), device=device, offline=True)
        llm.generate("Once", max_tokens=3)
        two_lane([1, 2], ResidencyView(frozenset(), slots=1), COSTS)
        assert bool(called) is expected, called


@pytest.mark.parametrize("device", ["cpu", "sim:paper"])
def test_a_wrong_choice_is_refused_before_a_model_is_looked_for(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(compiled.VARIABLE, "mmx")
    with pytest.raises(UsageError, match=r"DALI_KERNELS asks for 'mmx'[^\n]*\n[^\n]*torch"):
        dali.load("no/such-model", device=device, offline=True)


def test_the_switch_needs_no_torch() -> None:
    code = "import dali.compiled, sys; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
