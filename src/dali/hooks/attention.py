"""dali's entry in transformers' AttentionInterface: every sequence of the step attends to its own keys and values."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from dali.errors import DaliError
from dali.hooks.latent import shared_latents
from dali.kernels import native
from dali.step.context import AttentionArguments, Segment, StepContext, current_step

IMPLEMENTATION = "dali"
_WINDOW = "dali_window"  # an attribute in a module's __dict__


def set_windows(model: nn.Module, windows: Mapping[str, int | None]) -> None:
    """Let the attention module at each path see so many tokens back, itself included (None: all), whatever it asks for when it
    is called: transformers' own attention goes by the mask that told (hooks/calls.py)."""
    for name, window in windows.items():
        model.get_submodule(name).__dict__[_WINDOW] = window


def smallest_window(model: nn.Module) -> int | None:
    """Of the windows that were set; None where all layers see all tokens."""
    windows = [module.__dict__.get(_WINDOW) for module in model.modules()]
    return min((window for window in windows if window is not None), default=None)


def keeps_tokens(model: nn.Module) -> bool:
    """Whether a layer of a model whose windows were set keeps keys and values."""
    return any(_WINDOW in module.__dict__ for module in model.modules())


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [1, heads, tokens, width], key and value [1, kv heads, tokens, their width] -> [1, tokens, heads, value width].

    Tokens are the flattened row of the step; `s_aux` are gpt-oss's attention sinks, one logit a head.
    """
    step = current_step()
    if step is None:
        raise DaliError(
            "This model's attention belongs to dali's engine and was called outside of it.",
            "Use llm.generate / stream / chat, or dali.attach(model) to keep using model.generate.",
        )
    sliding_window = module.__dict__.get(_WINDOW, sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if step.seen is not None:
        step.seen.append(AttentionArguments(scale, sliding_window, s_aux))
    if (latents := shared_latents(module)) is not None:
        index: Any = module.layer_idx
        mixed = latents.attend(index, query[0], key[0], sliding_window, scale, s_aux, step)
        return mixed[None].to(query.dtype), None
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
    decoding = []
    compiled = step.native and query.device.type == "cpu" and query.dtype in native.ATTENTION_DTYPES
    for segment in step.segments:
        rows = slice(segment.start, segment.start + segment.tokens)
        layer = segment.state.kv(module.layer_idx)  # type: ignore[arg-type]
        if compiled:
            place = layer.place(segment.start, key[0, :, rows], value[0, :, rows], sliding_window)
            if segment.tokens == 1:
                decoding.append(place)
            else:
                native.attend_prompt(
                    query[0], key[0], value[0], place, segment.tokens, sliding_window, scale, s_aux, out[0]
                )
            continue
        keys, values = layer.append(key[0, :, rows], value[0, :, rows], sliding_window)
        started = time.perf_counter()
        out[0, rows] = _attend(
            query[0, :, rows], keys, values, scale, s_aux, step, segment, layer.first, sliding_window
        ).transpose(0, 1)
        step.attention_seconds += time.perf_counter() - started
    if decoding:
        native.attend(query[0], key[0], value[0], decoding, scale, s_aux, out[0])
    return out, None


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    sinks: Tensor | None,
    step: StepContext,
    segment: Segment,
    first_key: int,
    window: int | None,
) -> Tensor:
    """One sequence: query [heads, tokens, width], keys and values [kv heads, keys, width] -> [heads, tokens, width]."""
    if window and segment.tokens == 1 and keys.shape[1] > window:  # a slice is cheaper than a mask
        keys, values = keys[:, -window:], values[:, -window:]
    mask = None
    if segment.tokens > 1:
        mask = step.mask(segment, first_key, window, query.device)
    if sinks is not None:
        return _attend_with_sinks(query, keys, values, scale, sinks, mask)
    return F.scaled_dot_product_attention(
        query[None],
        keys[None],
        values[None],
        attn_mask=mask,
        scale=scale,
        enable_gqa=query.shape[0] != keys.shape[0],
    )[0]


def _attend_with_sinks(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, sinks: Tensor, mask: Tensor | None
) -> Tensor:
    """Each head has one more logit, its sink, that takes probability but has no value (gpt-oss)."""
    groups = query.shape[0] // keys.shape[0]
    keys, values = keys.repeat_interleave(groups, 0), values.repeat_interleave(groups, 0)
    logits = query @ keys.transpose(1, 2) * scale
    if mask is not None:
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    logits = torch.cat([logits, sinks.view(-1, 1, 1).expand(-1, logits.shape[1], 1).to(logits.dtype)], dim=-1)
    probabilities = logits.softmax(dim=-1, dtype=torch.float32)[..., :-1]
    return probabilities.to(values.dtype) @ values


AttentionInterface.register(IMPLEMENTATION, _attention_forward)
