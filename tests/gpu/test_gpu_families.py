"""Whole models over a GPU, dense part included, by our kernels on a stand-in: prompts and decoding have the CPU's bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dali
from dali.offload.gpu_model import GpuModel
from decoded import decoded
from decoding_families import DECODING, decoding_model
from families import random_model, save_model

STEPS = 3  # what comes after is more of the same, and slow on a stand-in
PLAIN = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss")
# There are no kernels for attention over a latent, recurrent layers, gated attention and experts beside a dense network yet:
# test_gpu_torch.py.
LATENT = {"deepseek_v2", "deepseek_v3", "glm4_moe_lite"}
RECURRENT = {"lfm2_moe", "qwen3_next", "qwen3_5_moe_text", "nemotron_h", "granitemoehybrid"}
BESIDE = {"gemma4_text"}
FAMILIES = [*PLAIN, *(family for family in DECODING if family not in LATENT | RECURRENT | BESIDE)]


def family_model(family: str, dtype: torch.dtype) -> Any:
    return random_model(family, dtype=dtype) if family in PLAIN else decoding_model(family, dtype)


CASES = [(family, torch.bfloat16) for family in FAMILIES] + [(family, torch.float32) for family in PLAIN]


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_a_gpu_gives_the_bits_of_the_cpu(driver, tmp_path, family, dtype):
    directory = save_model(family_model(family, dtype), tmp_path)
    expected = decoded(dali.load(directory, quant="w4"), STEPS)
    llm = dali.load(directory, quant="w4", device="cuda", vram="300KiB", notify=[].append)
    assert isinstance(llm.engine.decoder, GpuModel)
    found = decoded(llm, STEPS)
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))
    assert driver.races == []
    llm.close()
