"""What dali makes of a tiny model of each family: whether it loads, attaches or is refused, and what differs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

import dali
from dali.errors import DaliError
from dali.fused.attention import DecodingAttention
from dali.kernels import native
from dali.llm import LLM
from families import save_model
from families_sweep.tiny import Variant, random_model
from logits import dali_logits, expected_logits, largest_difference, quantize_experts, random_prompts

LENGTHS = (21, 13)  # beyond the windows, across chunks of 6
TOLERANCE = 5e-5  # of float32 sums taken in another order, relative to the logits' scale


@dataclass(frozen=True)
class Outcome:
    """What became of one variant."""

    loads: bool = False
    attaches: bool = False
    reason: str = ""  # why it does not load, in dali's words; and if it does not attach either, why not
    decodes: str = ""  # how a loaded one decodes
    differences: tuple[
        tuple[str, float], ...
    ] = ()  # each way of running -> largest difference of logits, relative


@contextmanager
def _environment() -> Iterator[tuple[Path, pytest.MonkeyPatch]]:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", f"{folder}/cache")
        yield Path(folder), patch


def outcome(variant: Variant) -> Outcome:
    """Try everything with one variant. What is neither right nor a DaliError is raised."""
    prompts = random_prompts(LENGTHS)
    model = random_model(variant)
    expected = [expected_logits(model, tokens) for tokens in prompts]
    with _environment() as (folder, patch):
        directory = save_model(model, folder / "model")
        attached, why_not_attached = _attach(model, prompts, expected)
        try:
            llm = dali.load(directory, quant="f32")
        except DaliError as error:
            reason = error.problem.replace(str(directory), "the model")
            return Outcome(False, attached is not None, reason or why_not_attached, "", attached or ())
        differences = [("float32", largest_difference(llm, prompts, expected)), *(attached or ())]
        accelerated = {"device": "sim:paper", "vram": "300KiB", "prefetch": "next_gate"}
        # Side by side as on the CPU: torch, which computes what is not packed, rounds by how many tokens there are.
        over = dali.load(directory, quant="f32", parallel=len(prompts), **accelerated)
        pairs = zip(dali_logits(over, prompts, 512), dali_logits(llm, prompts, 512), strict=True)
        differences.append(("over an accelerator", 0.0 if all(torch.equal(*pair) for pair in pairs) else 1.0))
        decodes = how_it_decodes(dali.load(directory, quant="w8"))
        patch.setenv(native.VARIABLE, "torch")
        rounded = random_model(variant)
        quantize_experts(rounded, "w8")
        expected = [expected_logits(rounded, tokens) for tokens in prompts]
        differences.append(("w8", largest_difference(dali.load(directory, quant="w8"), prompts, expected)))
    return Outcome(True, attached is not None, why_not_attached, decodes, tuple(differences))


def _attach(
    model: Any, prompts: list[list[int]], expected: list[torch.Tensor]
) -> tuple[tuple[tuple[str, float], ...] | None, str]:
    """The difference that attaching makes, or why it is refused."""
    try:
        dali.attach(model, quant="f32")
    except DaliError as error:
        return None, error.problem
    scale = max(float(wanted.abs().max()) for wanted in expected)
    found = [expected_logits(model, tokens) for tokens in prompts]
    difference = max(float((f - e).abs().max()) for f, e in zip(found, expected, strict=True)) / scale
    return (("attached", difference),), ""


def how_it_decodes(llm: LLM) -> str:
    """Which part of a decoding step is native."""
    if llm.engine.decoder is not None:
        return "one native call"
    if any(isinstance(module.__dict__.get("forward"), DecodingAttention) for module in llm.model.modules()):
        return "native attention"
    return "transformers' forward"
