"""dali's entry in layers that keep recurrent state: transformers' code calls a few functions by name, which take the tokens of a
sequence and know nothing of those before or beside them. Within a step they are dali's: each sequence of the row goes on from its
own state."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from dali.kernels import native, recurrence
from dali.kernels.recurrence import Stretch
from dali.step.context import StepContext, current_step
from dali.step.recurrent import RecurrentState


class ConvolutionWindow(RecurrentState):
    """The last inputs of a convolution, [width - 1, channels]."""


class LinearAttentionState(RecurrentState):
    """What linear attention made of all tokens so far, [heads, key width, value width]: of a selective state space [heads, state,
    head width, padded to what the compiled kernels take at once]."""


_layer: ContextVar[int | None] = ContextVar("dali_recurrent_layer", default=None)  # that is running


def stretches(
    kind: type[RecurrentState],
    layer: int,
    step: StepContext,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> list[Stretch]:
    """The step's sequences with their states of a layer, which go on by what the step has of each."""
    found = []
    for segment in step.segments:
        state, places = segment.state.layer(layer, kind), segment.state.places
        rows = slice(segment.start, segment.start + segment.tokens)
        found.append((rows, *state.advance(segment.tokens, places, shape, dtype, device)))
    return found


def _convolve(
    layer: int,
    step: StepContext,
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **_: Any,
) -> Tensor:
    """hidden_states [1, channels, step's tokens], weight [channels, width] -> as hidden_states."""
    x = hidden_states[0].T
    out = x.new_empty(x.shape)
    compiled = step.native and x.is_cpu and x.dtype in native.CONVOLVED_DTYPES and activation in native.SILU
    convolve = native.convolve if compiled else recurrence.convolve
    if compiled and x.stride(1) != 1:
        x = x.contiguous()
    shape = weight.shape[1] - 1, weight.shape[0]
    own = stretches(ConvolutionWindow, layer, step, shape, x.dtype, x.device)
    convolve(x, weight, bias, activation, own, out)
    return out.T[None]


def _delta_rule(
    layer: int,
    step: StepContext,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[Tensor, None]:
    """Of [1, step's tokens, ...] each, as recurrence.delta_rule() takes them."""
    q, k, v, decay, rate = (part[0] for part in (query, key, value, g, beta))
    out = v.new_empty(v.shape)
    rule = native.delta_rule if step.native and v.is_cpu else recurrence.delta_rule
    shape = v.shape[1], k.shape[2], v.shape[2]
    own = stretches(LinearAttentionState, layer, step, shape, torch.float32, v.device)
    rule(q, k, v, decay, rate, use_qk_l2norm_in_kernel, own, out)
    return out[None], None


def _selective_scan(
    layer: int,
    step: StepContext,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None,
    dt_bias: Tensor,
    dt_softplus: bool,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    z: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """Of [1, step's tokens, ...] each, as recurrence.selective_scan() takes them."""
    assert dt_softplus and z is None
    x, steps, b, c = (part[0] for part in (hidden_states, dt, B, C))
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    scan = native.selective_scan if step.native and x.is_cpu else recurrence.selective_scan
    shape = recurrence.scan_state(x.shape[1], x.shape[2], b.shape[2])
    own = stretches(LinearAttentionState, layer, step, shape, torch.float32, x.device)
    scan(x, steps, A, b, c, D, dt_bias, dt_limit, own, out)
    return out[None]


# What transformers' recurrent layers call, and what it is within a step. Each is asked once a layer.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _convolve,
    "torch_chunk_gated_delta_rule": _delta_rule,
    "chunk_kimi_delta_attention": _delta_rule,
    "mamba2_chunk_scan": _selective_scan,
}


class _StepFunction:
    """Takes the place of one of the functions in a file of transformers'."""

    def __init__(self, plain: Callable[..., Any], ours: Callable[..., Any]) -> None:
        self.plain, self.ours = plain, ours
        self.__name__ = plain.__name__  # transformers looks at it

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        layer, step = _layer.get(), current_step()
        if layer is None or step is None:
            return self.plain(*arguments, **keywords)
        return self.ours(layer, step, *arguments, **keywords)


class _RecurrentForward:
    """Takes the place of a recurrent module's forward, and says whose functions are called."""

    def __init__(self, module: Any) -> None:
        self._plain, self._layer = module.forward, int(module.layer_idx)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        token = _layer.set(self._layer)
        try:
            return self._plain(*arguments, **keywords)
        finally:
            _layer.reset(token)


def recurrent_modules(model: nn.Module) -> list[nn.Module]:
    """Those of a model that keep recurrent state."""
    return [module for module in model.modules() if hasattr(module, "layer_idx") and _called(module)]


def bind_to_step(model: nn.Module) -> list[nn.Module]:
    """Let recurrent modules keep their state in the step's sequences; returns those modules."""
    modules = recurrent_modules(model)
    for module in modules:
        file = sys.modules[type(module).__module__]
        for name in _called(module):
            plain = getattr(file, name)
            if not isinstance(plain, _StepFunction):
                setattr(file, name, _StepFunction(plain, FUNCTIONS[name]))
        module.forward = _RecurrentForward(module)
    return modules


@contextmanager
def bound_to_step(model: nn.Module) -> Iterator[None]:
    """As bind_to_step(), for a while."""
    modules = bind_to_step(model)
    try:
        yield
    finally:
        for module in modules:
            del module.__dict__["forward"]


def _called(module: nn.Module) -> list[str]:
    """Those of the functions that a module's forward calls, and its file has: older transformers keep them elsewhere."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    file = sys.modules[type(module).__module__]
    return [
        name for name in FUNCTIONS if code and name in code.co_names and callable(getattr(file, name, None))
    ]
