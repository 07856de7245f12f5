"""transformers' own model in Qwen3-30B-A3B's shape, in bfloat16, experts by grouped_mm: those layers that fit, scaled to all."""

from __future__ import annotations

import copy
import inspect
import statistics
import time
from typing import Any

import torch
from transformers import DynamicCache, Qwen3MoeForCausalLM

from random_model import with_noise

MOST_LAYERS = 12
LEFT = 2**30  # bytes, for all but weights


def fitting_layers(config: Any, free: int) -> int:
    """How many layers fit `free` bytes, MOST_LAYERS at most."""
    layer = sum(part.numel() for part in on_meta(config, 1).model.layers.parameters())
    head = 2 * config.vocab_size * config.hidden_size
    return max(min((free - LEFT - 2 * head) // (2 * layer), MOST_LAYERS, config.num_hidden_layers), 0)


def on_meta(config: Any, layers: int) -> Any:
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        return Qwen3MoeForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.bfloat16)


@torch.inference_mode()
def step_seconds(
    config: Any, layers: int, place: torch.device, batches: tuple[int, ...], tokens: int
) -> list[float]:
    """Seconds of a decoding step for each batch, as if there were all of the config's layers: what one takes is told by models of
    `layers`, two at least, and of half of them."""
    model = with_noise(on_meta(config, layers).to_empty(device=place))
    whole = [decode(model, batch, tokens) for batch in batches]
    half = layers // 2
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:half], half
    more = config.num_hidden_layers - layers
    each = [
        (one - decode(model, batch, tokens)) / (layers - half)
        for one, batch in zip(whole, batches, strict=True)
    ]
    return [seconds + more * layer for seconds, layer in zip(whole, each, strict=True)]


def decode(model: Any, batch: int, tokens: int) -> float:
    """Seconds of a step, a token a sequence; median of all but the first quarter."""
    name = "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
    cache, found = {name: DynamicCache(config=model.config)}, []
    ids = torch.arange(1, batch + 1, device=model.device)[:, None]
    for _ in range(tokens):
        started = time.perf_counter()
        logits = model(input_ids=ids, use_cache=True, **cache).logits
        ids = logits[:, -1:].argmax(-1)
        ids.tolist()  # waits
        found.append(time.perf_counter() - started)
    return statistics.median(found[len(found) // 4 :])
