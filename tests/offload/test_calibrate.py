from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dali
from accelerated import calibration_text, load
from dali.engine.budget import StateBudget
from dali.hooks import seam
from dali.hooks.seam import dali_layer, set_dali_layer
from dali.llm import LLM
from dali.offload import calibrate
from dali.offload.calibrate import load_predictor
from dali.offload.vram import state_size
from dali.progress import silent
from dali.runtime.predict import GateShift, LinearMap
from dali.step.size import Reservation
from families import random_model, save_model

TOKENS = 150


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(random_model("qwen3_moe", num_hidden_layers=4), tmp_path_factory.mktemp("model"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's calibrations go; the text is short and in the model's words."""
    monkeypatch.setattr(calibrate, "TEXT", calibration_text(tmp_path / "text.txt", TOKENS))
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibration"


@pytest.fixture
def llm(directory: Path, cache: Path) -> LLM:
    return load(directory, quant="f32")  # int8 activations round differently for other chunks


def ask(
    llm: LLM, kind: str = "residual", distance: int = 1, fingerprint: str = "f", meter: Any = silent
) -> Any:
    routers = seam.routers(llm.model, 64)
    assert routers is not None
    top_k = llm.loaded.top_k
    return load_predictor(
        kind, distance, llm.engine, llm.tokenizer, routers, top_k, "tiny", fingerprint, meter
    )


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calibrations that are made, not read."""
    made: list[str] = []
    honest = calibrate.calibrate

    def noted(kind: str, *arguments: Any) -> list[Tensor]:
        made.append(kind)
        return honest(kind, *arguments)

    monkeypatch.setattr(calibrate, "calibrate", noted)
    return made


def gate_inputs(llm: LLM) -> list[Tensor]:
    """[layer][tokens, hidden] over the text, in the windows the model's positions allow."""
    seen: list[list[Tensor]] = [[] for _ in range(4)]
    routers = seam.routers(llm.model, 64)
    assert routers is not None
    handles = [
        router.register_forward_pre_hook(
            lambda module, inputs, mine=mine: mine.append(inputs[0].view(-1, 64))
        )
        for router, mine in zip(routers, seen, strict=True)
    ]
    ids = llm.encode(calibrate.TEXT.read_text())
    for begin in range(0, TOKENS, 63):
        for _ in llm.engine.score(llm.sequence(ids[begin : begin + 63], max_tokens=1)):
            pass
    for handle in handles:
        handle.remove()
    return [torch.cat(mine) for mine in seen]


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_shifts_are_the_mean_steps_between_gate_inputs(llm: LLM, distance: int) -> None:
    predictor, inputs = ask(llm, distance=distance), gate_inputs(llm)
    assert isinstance(predictor, GateShift)
    assert predictor.shifts is not None
    assert len(predictor.shifts) == 4 - distance
    for layer, shift in enumerate(predictor.shifts):
        torch.testing.assert_close(shift, (inputs[layer + distance] - inputs[layer]).mean(0))


@pytest.mark.parametrize("distance", [1, 2])
def test_ridge_maps_gate_inputs_to_the_later_routers_logits(llm: LLM, distance: int) -> None:
    predictor, inputs = ask(llm, "ridge", distance), gate_inputs(llm)
    assert isinstance(predictor, LinearMap)
    assert (len(predictor.maps), predictor.top_k) == (4 - distance, 3)
    routers = seam.routers(llm.model, 64)
    assert routers is not None
    for layer in range(4 - distance):
        logits = routers[layer + distance](inputs[layer + distance])[0]
        found = torch.nn.functional.pad(inputs[layer], (0, 1), value=1.0) @ predictor.maps[layer]
        least = torch.linalg.lstsq(inputs[layer], logits - logits.mean(0)).solution
        residue = (logits - found).square().mean()
        assert residue < 1.1 * (logits - logits.mean(0) - inputs[layer] @ least).square().mean()


def test_chunks_of_the_engine_make_no_difference(llm: LLM) -> None:
    whole = ask(llm).shifts
    llm.engine.scheduler.step_tokens = 7
    for shift, other in zip(whole, ask(llm, fingerprint="g").shifts, strict=True):
        torch.testing.assert_close(shift, other, rtol=1e-4, atol=1e-5)


def test_next_gate_needs_no_calibration(llm: LLM, cache: Path, runs: list[str]) -> None:
    assert ask(llm, "next_gate").shifts is None
    assert runs == []
    assert not cache.exists()


def test_no_layer_is_that_far_ahead(llm: LLM) -> None:
    assert ask(llm, distance=9).predict(0, torch.zeros(1, 64)) is None
    assert ask(llm, "ridge", distance=9).predict(0, torch.zeros(1, 64)) is None


def test_a_calibration_is_kept(llm: LLM, directory: Path, runs: list[str]) -> None:
    shifts = ask(llm).shifts
    again = ask(load(directory)).shifts
    assert runs == ["residual"]
    assert all(torch.equal(one, other) for one, other in zip(shifts, again, strict=True))
    ask(llm, "ridge")
    ask(llm, distance=2)
    assert runs == ["residual", "ridge", "residual"]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    path.write_bytes(bytes(content[: len(content) // 2]))


def garble(path: Path) -> None:
    path.write_bytes(b"\xff" * 300)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [damage, garble, empty])
def test_a_damaged_calibration_is_made_again(
    llm: LLM, cache: Path, runs: list[str], spoil: Callable[[Path], None]
) -> None:
    shifts = ask(llm).shifts
    spoil(cache / "tiny" / "residual-1.safetensors")
    again = ask(llm).shifts
    assert runs == ["residual"] * 2
    assert all(torch.equal(one, other) for one, other in zip(shifts, again, strict=True))
    ask(llm)
    assert len(runs) == 2


def test_a_calibration_of_another_model_text_or_version_is_made_again(
    llm: LLM, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(llm)
    ask(llm, fingerprint="another checkpoint")
    assert len(runs) == 2
    calibrate.TEXT.write_text(calibrate.TEXT.read_text() + " 7")
    ask(llm, fingerprint="another checkpoint")
    assert len(runs) == 3
    monkeypatch.setattr(calibrate, "VERSION", "2")
    ask(llm, fingerprint="another checkpoint")
    assert len(runs) == 4


class Interrupts:
    """A meter whose n-th advance is Ctrl-C."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.told: list[int] = []

    def __call__(self, what: str, total: int) -> Callable[[int], None]:
        assert (what, total) == ("Calibrating residual prefetching", TOKENS)
        return self.advance

    def advance(self, done: int) -> None:
        self.told.append(done)
        if len(self.told) == self.at:
            raise KeyboardInterrupt


def hooks(llm: LLM) -> Iterator[int]:
    for router in seam.routers(llm.model, 64) or ():
        yield len(router._forward_hooks)


def test_progress_is_told_in_tokens(llm: LLM) -> None:
    meter = Interrupts(0)
    ask(llm, meter=meter)
    assert meter.told == [63, 63, 24]


@pytest.mark.parametrize("at", [1, 3])
def test_an_interrupted_calibration_leaves_nothing(llm: LLM, cache: Path, runs: list[str], at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        ask(llm, meter=Interrupts(at))
    assert not cache.exists()
    assert sum(hooks(llm)) == 0
    ask(llm)
    assert len(runs) == 2
    assert [path.name for path in cache.rglob("*.*")] == ["residual-1.safetensors"]


def test_ctrl_c_inside_the_model_while_calibrating(
    llm: LLM, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = llm.generate([5, 6, 7], temperature=0, max_tokens=4, ignore_eos=True).tokens
    experts = next(iter(seam.experts_modules(llm.model).values()))
    layer, calls = dali_layer(experts), [0]

    def interrupted(*arguments: Any) -> Tensor:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return layer(*arguments)

    set_dali_layer(experts, interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask(llm)
    set_dali_layer(experts, layer)
    assert not cache.exists()
    assert sum(hooks(llm)) == 0
    assert llm.generate([5, 6, 7], temperature=0, max_tokens=4, ignore_eos=True).tokens == expected


def test_ctrl_c_while_the_file_is_written_leaves_none(
    llm: LLM, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(calibrate, "save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask(llm)
    assert list(cache.rglob("*.*")) == []
    ask(llm)


def test_an_unwritable_cache_is_an_error(llm: LLM, cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text("a file where the folder should be")
    with pytest.raises(dali.DaliError, match=r"Cannot keep the calibration in .*\n.* prefetch none"):
        ask(llm)


def test_a_folder_in_the_files_place_is_an_error(llm: LLM, cache: Path) -> None:
    (cache / "tiny" / "residual-1.safetensors").mkdir(parents=True)
    with pytest.raises(dali.DaliError, match="Cannot keep the calibration"):
        ask(llm)
    assert [path.name for path in (cache / "tiny").iterdir()] == ["residual-1.safetensors"]


def test_bfloat16_models_get_bfloat16_shifts(directory: Path, cache: Path) -> None:
    predictor = ask(load(directory, dtype="bfloat16"))
    assert predictor.shifts[0].dtype == torch.bfloat16


def test_a_budget_for_what_sequences_keep_does_not_hold_it_up(llm: LLM, cache: Path) -> None:
    """Another system may run on the accelerator already, whose memory it is of."""
    size = state_size(llm.engine)
    budget = StateBudget(size.nbytes(Reservation(2, 2)), size)
    llm.engine.limit_states(budget)
    assert ask(llm) is not None
    assert llm.engine.budget is budget
