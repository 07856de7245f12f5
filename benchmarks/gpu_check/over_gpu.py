"""A random model over the GPU and on the CPU again."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from dali.llm import LLM, STEP_TOKENS
from dali.offload.build import accelerate
from dali.options import LoadOptions
from dali.policies.once.vram import MOST_SCRATCH
from dali.progress import silent
from dali.runtime.predict import GateShift


@contextmanager
def over_gpu(llm: LLM, share: float, profile: str | None) -> Iterator[None]:
    """With a share of each layer's experts resident, planned by the default policies; what is predicted is what the next layer's
    router makes of this layer's input, which takes no calibration. DaliError where it cannot be had."""
    decoder: Any = llm.engine.decoder
    pool, record = llm.loaded.pool, llm.loaded.layout.record_bytes
    layers, experts = pool.layers, pool.experts
    slots = 0 if share == 0 else layers * int(experts * share) + (0 if share == 1 else MOST_SCRATCH)
    # Named, the policy is kept to, whatever it costs.
    options = LoadOptions(device="cuda", vram=slots * record, profile=profile, assign="two_lane")
    with patch("dali.offload.build.load_predictor", next_gate):
        experts = accelerate(llm.loaded, llm.engine, options, silent, lambda message: None, decoder=decoder)
    assert experts is not None
    llm.accelerate(experts)
    try:
        yield
    finally:
        assert llm.executor is not None
        llm.engine.forget()
        llm.executor.device.close()
        llm.engine.decoder, llm.accelerated = decoder, None
        llm.engine.follow(time.perf_counter, None, False, STEP_TOKENS)
        gc.collect()  # the model's own memory there


def next_gate(
    kind: str, distance: int, engine: Any, tokenizer: Any, routers: Sequence[Any], *rest: Any
) -> GateShift:
    """In the place of a calibrated predictor."""
    return GateShift(routers, distance)
