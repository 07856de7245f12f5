"""How a step of a model calls its attention and its experts, known before weights are read.

A window may stand in the attention mask alone (Phi-3.5-MoE, Qwen2-MoE): transformers' own attention needs no more. The engine
builds no masks, so it asks once: the model runs on meta, where nothing is computed, and the rules of the masks that reach its
attention are evaluated at positions beyond any sequence's.
"""

from __future__ import annotations

import inspect
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, cache_utils
from transformers.masking_utils import AttentionMaskInterface
from transformers.utils import logging as transformers_logging

from dali.errors import DaliError, reason
from dali.hooks import recurrent, seam
from dali.hooks.attention import IMPLEMENTATION
from dali.hooks.recurrent import ConvolutionWindow, LinearAttentionState
from dali.step.context import Segment, StepContext, running
from dali.step.state import SequenceState

PROBE = "dali-probe"
ROUTER_LOGITS = "output_router_logits"
# What transformers' cache keeps of layers that the engine can step: keys and values, all or a window's, or nothing.
PLAIN = {
    getattr(cache_utils, name, None) for name in ("DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer")
}
# What it keeps of recurrent layers: a convolution's window, a matrix, or both.
RECURRENT = getattr(cache_utils, "LinearAttentionLayer", None)
# Tensors that attention may be handed beside query, key, value and mask, as the engine's attention knows what they are for.
KNOWN = {"s_aux", "position_ids", "cache_position"}
POSITIONS, SAMPLED_KEYS = (
    2**40,
    1024,
)  # a mask is asked for more positions than any sequence has, and for some keys of each
ATTACH = "Load it with transformers and use dali.attach(model) to give it dali's experts."
MaskRule = Callable[
    [Tensor, Tensor, Tensor, Tensor], Tensor
]  # (batch, head, query, key) -> whether it is seen


@dataclass(frozen=True)
class ModelCalls:
    """What one step of a model asks of its attention and experts.

    `windows`: path of each attention module -> how many tokens back it sees, itself included; None: all. `top_k`: experts a
    token is routed to. `kept`: numbers that a token's keys and values are in all layers together, or its latents.
    """

    windows: dict[str, int | None]
    top_k: int
    kept: int = 0


def model_calls(skeleton: Any) -> ModelCalls:
    """How a model on meta calls its attention and experts.

    DaliError, naming what the engine lacks, for layers that keep something else than keys and values, for attention that is not
    causal, or wants more than keys, values and a window.
    """
    cache = _plain_cache(skeleton)
    step = _run(skeleton, cache)
    names = {module: name for name, module in skeleton.named_modules()}
    windows: dict[str, int | None] = {}
    layers: set[int] = set()
    for call in step.attention:
        _check(call)
        layer: Any = getattr(call.module, "layer_idx", None)
        if layer is None or layer in layers:
            raise _refused(call.module, "attends several times in a step")
        layers.add(layer)
        windows[names[call.module]] = _window(call, step)
    _check_recurrent(skeleton, cache)
    for index, kept in enumerate(cache.layers):
        if index not in layers and getattr(kept, "keys", None) is not None:
            raise _refused(skeleton, f"attends by code of its own in layer {index}")
    return ModelCalls(windows, max(step.top_k), _kept(skeleton, step))


def _kept(skeleton: Any, step: _Step) -> int:
    config = skeleton.config.get_text_config()
    if rank := getattr(config, "kv_lora_rank", None):
        return len(step.attention) * (int(rank) + int(getattr(config, "qk_rope_head_dim", None) or 0))
    return sum(call.kept for call in step.attention)


@dataclass
class _AttentionCall:
    module: nn.Module
    mask: Tensor | None
    kept: int  # numbers of a token's keys and values
    keywords: dict[str, Any]


@dataclass
class _Step:
    attention: list[_AttentionCall] = field(default_factory=list)
    rules: list[tuple[Tensor, MaskRule]] = field(default_factory=list)  # with the mask that stands for it
    top_k: list[int] = field(default_factory=list)


_step: _Step | None = None  # the one that is watched


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    assert _step is not None, "only a probe attends like this"
    kept = sum(rows.shape[1] * rows.shape[-1] for rows in (key, value))
    _step.attention.append(_AttentionCall(module, attention_mask, kept, keywords))
    return query.new_empty(*query.shape[:1], query.shape[2], query.shape[1], value.shape[-1]), None


def _mask(
    batch_size: int, q_length: int, kv_length: int, mask_function: MaskRule, device: Any = None, **_: Any
) -> Tensor:
    assert _step is not None, "only a probe makes such masks"
    mask = torch.empty(batch_size, 1, q_length, kv_length, dtype=torch.bool, device=device)
    _step.rules.append((mask, mask_function))
    return mask


def _route(hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    assert _step is not None, "only a probe leaves its experts out"
    _step.top_k.append(ids.shape[-1])
    return hidden


AttentionInterface.register(PROBE, _attend)
AttentionMaskInterface.register(PROBE, _mask)


def _plain_cache(skeleton: Any) -> Any:
    """transformers' cache for the model. DaliError where it keeps what the engine does not know."""
    config = skeleton.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ()
    try:
        cache = DynamicCache(config=config)
    except Exception as error:  # a kind of layer that transformers has no cache for
        raise _unsteppable(skeleton, reason(error)) from error
    other = [i for i, layer in enumerate(cache.layers) if type(layer) not in PLAIN and not _recurrent(layer)]
    if other:
        raise _unsteppable(skeleton, _kinds(skeleton, cache, other))
    if skeleton._is_stateful and not kinds:
        raise _unsteppable(skeleton, "state of their own kind")
    return cache


def _recurrent(kept: Any) -> bool:
    return type(kept) is RECURRENT and kept.number_of_states == 1


def _kinds(skeleton: Any, cache: Any, layers: list[int]) -> str:
    """What layers are called, for people."""
    kinds = getattr(skeleton.config.get_text_config(), "layer_types", None) or ()
    named = {kinds[index] if index < len(kinds) else type(cache.layers[index]).__name__ for index in layers}
    return ", ".join(sorted(named))


def _check_recurrent(skeleton: Any, cache: Any) -> None:
    """DaliError for a recurrent layer that keeps something in transformers' cache, `cache` after a step, and nothing, or
    something else, in the state of a sequence of dali's: it computes by functions that dali does not know."""
    layers = [index for index, kept in enumerate(cache.layers) if _recurrent(kept)]
    if not layers:
        return
    state = SequenceState()
    with recurrent.bound_to_step(skeleton), running(StepContext([Segment(state, 0, 1, 0, True)], 1)):
        _run(skeleton, None, IMPLEMENTATION)
    for index in layers:
        kept = cache.layers[index]
        ours = state.layer(index, ConvolutionWindow).tokens, state.layer(index, LinearAttentionState).tokens
        if ours != (int(kept.is_conv_states_initialized[0]), int(kept.is_recurrent_states_initialized[0])):
            raise _unsteppable(skeleton, _kinds(skeleton, cache, [index]))


def _unsteppable(skeleton: Any, kinds: str) -> DaliError:
    return DaliError(f"{type(skeleton).__name__} has layers the engine cannot step ({kinds}).", ATTACH)


def _run(skeleton: Any, cache: Any, implementation: str = PROBE) -> _Step:
    """A step of one token, watched, with transformers' cache or without. DaliError where transformers' code does not run on
    meta."""
    global _step
    _step = step = _Step()
    # transformers 5.24 renamed the argument, and warns of the old name.
    name = "cache" if "cache" in inspect.signature(skeleton.forward).parameters else "past_key_values"
    try:
        with _probing(skeleton, implementation), torch.inference_mode(), torch.device("meta"):
            ids = torch.zeros(1, 1, dtype=torch.long)
            skeleton(input_ids=ids, position_ids=ids, use_cache=cache is not None, **{name: cache})
    except Exception as error:  # it may fail wherever it looks at values
        raise DaliError(
            f"{type(skeleton).__name__} does not say how its layers attend ({reason(error)}).", ATTACH
        ) from error
    finally:
        _step = None
    return step


@contextmanager
def _probing(skeleton: Any, implementation: str) -> Iterator[None]:
    """Every attention and mask of the model on meta is of that implementation, and its experts compute nothing."""
    configs = {id(module.config): module.config for module in skeleton.modules() if hasattr(module, "config")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    # What a configuration may ask for beside logits counts the router's choices, which are not there.
    extra = [config for config in configs.values() if getattr(config, ROUTER_LOGITS, False)]
    rotary = [module for module in skeleton.modules() if hasattr(module, "rope_type")]
    experts = list(seam.experts_modules(skeleton).values())
    training, verbosity = skeleton.training, transformers_logging.get_verbosity()
    try:
        transformers_logging.set_verbosity_error()  # of packages that are faster than torch: dali's kernels are asked later
        for config in configs.values():
            config._attn_implementation = implementation
        for config in extra:
            setattr(config, ROUTER_LOGITS, False)
        for module in experts:
            module.forward = _route
        for module in rotary:
            module.forward = _on_meta(module)
        skeleton.eval()
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        skeleton.train(training)
        for module in (*experts, *rotary):
            module.__dict__.pop("forward", None)
        for config, implementation in before:
            config._attn_implementation = implementation
        for config in extra:
            setattr(config, ROUTER_LOGITS, True)


def _on_meta(rotary: Any) -> Callable[..., Any]:
    """A rotary module's forward on meta; one that looks at the positions themselves (longrope) computes on the CPU."""
    plain = rotary.forward

    def call(x: Tensor, position_ids: Tensor, *arguments: Any, **keywords: Any) -> Any:
        try:
            return plain(x, position_ids, *arguments, **keywords)
        except RuntimeError:
            with torch.device("cpu"):
                like = torch.empty(0, dtype=x.dtype)
                positions = torch.zeros(position_ids.shape, dtype=torch.long)
                out = type(rotary)(rotary.config).forward(like, positions, *arguments, **keywords)
            return tuple(part.to("meta") for part in out) if isinstance(out, tuple) else out.to("meta")

    return call


def _refused(module: nn.Module, what: str) -> DaliError:
    return DaliError(f"{type(module).__name__} {what}, which dali's engine cannot step.", ATTACH)


def _check(call: _AttentionCall) -> None:
    if call.keywords.get("softcap") is not None:
        raise _refused(call.module, "soft-caps its attention logits")
    for name, value in call.keywords.items():
        if isinstance(value, Tensor) and name not in KNOWN:
            raise _refused(call.module, f"attends by {name!r}")
    if call.mask is None and getattr(call.module, "is_causal", True) is False:
        raise _refused(call.module, "attends to later tokens")


def _window(call: _AttentionCall, step: _Step) -> int | None:
    """The window that a call's mask stands for, None for all earlier tokens."""
    if call.mask is None:
        return None
    rule = next((rule for mask, rule in step.rules if mask is call.mask), None)
    if rule is None:
        raise _refused(call.module, "attends by a mask of its own making")
    other = _refused(call.module, "attends neither to all earlier tokens nor to a window of them")
    zero = torch.zeros((), dtype=torch.long)

    def seen(query: int, keys: Tensor) -> Tensor:
        try:
            return torch.as_tensor(rule(zero, zero, torch.tensor(query), keys)).expand(len(keys))
        except RuntimeError as error:  # it asks for more than positions, which on meta have no values
            raise other from error

    last = POSITIONS - 1
    first = bisect_left(range(last), True, key=lambda key: bool(seen(last, torch.tensor([key]))))
    width = last - first + 1
    for query in {0, width - 1, width, width + 1, 2 * width, POSITIONS // 2, last}:
        if not 0 <= query <= last:
            continue
        near = [query - width + step for step in range(-1, 3)] + [query + step for step in range(-1, 3)]
        keys = torch.tensor([*near, *range(0, POSITIONS, POSITIONS // SAMPLED_KEYS)])
        keys = keys[(keys >= 0) & (keys <= last)]
        row = seen(query, keys)
        if row[keys > query].any():
            raise _refused(call.module, "attends to later tokens")
        if not torch.equal(row, (keys <= query) & (keys > query - width)):
            raise other
    return width if width < POSITIONS else None
