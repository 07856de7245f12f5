"""What a budget of RAM keeps free for a step is more than any step takes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import dali
from dali.hardware.free_memory import own_memory
from dali.kernels import native
from dali.loading.on_disk import step_bytes
from dali.loading.room import WORKING
from dali.offload.vram import state_size
from dali.step.size import Reservation
from decoding_families import DECODING, decoding_model
from families import FAMILIES, random_model, save_model

TOKENS = 1024
NOISE = 2**22  # bytes: Python's own, and pages that the allocator keeps
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not native.AVAILABLE, reason="the kernels and what Linux counts are needed"
)


def most_since(before: int) -> int:
    """Bytes more than `before` that the process had at a time since `restart`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) - before


def restart() -> int:
    """What the process has now; from here on the most is counted anew."""
    before = own_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        pytest.skip(f"the kernel does not count memory anew ({error.strerror})")
    return before


# Each has much of a part that takes memory: shared experts, dense layers, parallel networks, latents, recurrences.
FAMILIES_TRIED = (
    "mixtral qwen2_moe gpt_oss gemma4_text granitemoe ernie4_5_moe deepseek_v3 qwen3_next nemotron_h lfm2_moe"
)


@pytest.mark.parametrize("family", FAMILIES_TRIED.split())
def test_no_step_takes_more_than_is_kept_for_it(tmp_path, monkeypatch, family):
    if family not in (*FAMILIES, *DECODING):
        pytest.skip("another version of transformers writes it otherwise")
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    make = random_model if family in FAMILIES else decoding_model
    path = save_model(make(family, hidden_size=256, max_position_embeddings=2 * TOKENS), tmp_path / "model")
    llm = dali.load(path, quant="w8", cache_ram=0)
    llm.engine.scheduler.step_tokens = TOKENS
    loaded, taken = llm.loaded, []
    for first in range(3):
        before = restart()
        llm.generate([3 + first, *[5, 6, 7, 8] * (TOKENS // 4 - 1), 4, 4, 4], max_tokens=2, ignore_eos=True)
        taken.append(most_since(before))
    kept = state_size(llm.engine).nbytes(Reservation(TOKENS + 2, TOKENS))
    bound = step_bytes(loaded.layout, loaded.top_k, loaded.model, TOKENS) - WORKING
    print(f"{family}: {(min(taken) - kept) / TOKENS:.0f} of {bound / TOKENS:.0f} bytes a token")
    assert min(taken) - kept <= bound + NOISE
