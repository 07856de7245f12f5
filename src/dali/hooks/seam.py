"""The seam with transformers: `experts(hidden, top_k_index, top_k_weights)`.

Every MoE family decorates its experts module with `use_experts_implementation`; it looks up `config._experts_implementation`
in the ExpertsInterface, where dali registers one function. Flags of the module tell the parameter layout, so no family is
named here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from dali.errors import DaliError
from dali.kernels.activation import CLAMPED, KINDS, Activation
from dali.kernels.expert import ExpertShape
from dali.store.experts_module import ExpertsModule

IMPLEMENTATION = "dali"
ROUTERS = ("gate", "router")  # what a router is called beside its experts
# Magnitudes of gate and up that an activation is probed with: a clamp shows only beyond its limit.
PROBED = (0.0, 0.01, 0.3, 1.0, 1.7, 3.0, 5.0, 8.0, 12.0, 20.0, 50.0, 1e2, 1e3, 1e4, 1e6)
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # in configurations
ALPHAS, LIMITS = ("alpha", "swiglu_alpha"), ("limit", "swiglu_limit")  # what experts call theirs
DaliLayer = Callable[[Tensor, Tensor, Tensor], Tensor]  # (hidden, ids, weights), as MoELayer is called
_LAYER = "dali_layer"  # an attribute in a module's __dict__, so that torch takes it for no part of the model


def dali_layer(module: nn.Module) -> DaliLayer | None:
    """What computes an experts module's experts in its place; None for any other module."""
    layer: DaliLayer | None = module.__dict__.get(_LAYER)
    return layer


def set_dali_layer(module: nn.Module, layer: DaliLayer) -> None:
    """Let `layer` compute an experts module's experts from now on."""
    module.__dict__[_LAYER] = layer


def _experts_forward(module: nn.Module, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """What an experts module runs when the implementation is "dali"; shapes as in MoELayer."""
    layer = dali_layer(module)
    if layer is None:
        raise DaliError(
            f"{type(module).__name__} has the experts implementation 'dali' but no dali experts.",
            "Load the model with dali.load, or give it dali's experts with dali.attach(model).",
        )
    if torch.is_grad_enabled() and (hidden.requires_grad or weights.requires_grad):
        result: Tensor = _Untrainable.apply(layer, hidden, ids, weights)  # type: ignore[no-untyped-call]
        return result
    return layer(hidden, ids, weights)


class _Untrainable(torch.autograd.Function):
    """dali's experts where gradients may be asked for: whoever does is refused, as the graph would go on around the experts."""

    @staticmethod
    def forward(ctx: Any, layer: DaliLayer, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        return layer(hidden, ids, weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise DaliError(
            "dali's experts compute no gradients, so this model cannot be trained.",
            "Train it before dali.attach, or with transformers alone.",
        )


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _experts_forward)


def experts_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> experts module, in layer order. What the decorator sets is the mark; no class is named."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "is_transposed") and hasattr(module, "is_concatenated")
    }


def describe(name: str, module: nn.Module) -> ExpertsModule:
    """The layout of one experts module, from its flags and parameter shapes. DaliError for a layout dali lacks."""
    if dali_layer(module) is not None:
        raise DaliError(f"{type(module).__name__} already has dali's experts.", "Attach a model once.")
    flags: Any = module
    if getattr(flags, "has_post_expert_norm", False):  # transformers 5.17 has no such experts
        raise DaliError(
            f"{type(module).__name__} normalises each expert's output, which dali does not support.",
            "Run this model with transformers.",
        )
    first, down = flags.gate_up_proj if flags.has_gate else flags.up_proj, flags.down_proj
    out, hidden = reversed(first.shape[1:]) if flags.is_transposed else first.shape[1:]
    intermediate = out // 2 if flags.has_gate else out
    shape = ExpertShape(hidden, intermediate, _activation(module), flags.has_gate, flags.has_bias)
    return ExpertsModule(name, down.shape[0], shape, flags.is_transposed, flags.is_concatenated)


def _activation(module: Any) -> Activation:
    """The activation that agrees with the module's own gate on a probe; naming it by value needs no family names."""
    sizes = torch.tensor(PROBED, dtype=torch.float64)
    values = torch.cat([-sizes.flip(0), sizes])
    pairs = torch.cartesian_prod(values, values) if module.has_gate else torch.stack([values, values], dim=1)
    gate, up = pairs.unbind(1)
    if not module.has_gate:
        expected = module.act_fn(up)
    elif module.is_concatenated:
        expected = module._apply_gate(torch.cat([gate, up])[None])[0]
    else:
        expected = module._apply_gate(pairs.flatten()[None])[0]
    alpha, limit = (
        next((float(getattr(module, name)) for name in names if getattr(module, name, None)), 0.0)
        for names in (ALPHAS, LIMITS)
    )
    kinds = [Activation(kind) for kind in KINDS if kind not in CLAMPED]
    if module.has_gate and limit:
        kinds += [Activation(kind, alpha if kind == "clamped_swiglu" else 0.0, limit) for kind in CLAMPED]
    # Some families compute theirs in float32, whose errors are those of the activation times `up`.
    allowed = 1e-5 * expected.abs() + 1e-6 * up.abs().clamp(min=1)
    small = pairs.abs().amax(1) <= 1
    agreeing = {
        activation: (activation(gate if module.has_gate else None, up) - expected).abs() <= allowed
        for activation in kinds
    }
    for activation, agrees in agreeing.items():
        if agrees.all():
            return activation
    for activation, agrees in agreeing.items():
        if agrees[small].all():
            raise DaliError(
                f"{type(module).__name__} limits what goes into its activation ({activation.kind}), "
                "which dali's kernels do not.",
                "Run this model with transformers.",
            )
    raise DaliError(
        f"{type(module).__name__} has an activation dali does not know ({type(module.act_fn).__name__}).",
        f"Known activations: {', '.join(KINDS)}. Run this model with transformers.",
    )


def describe_model(model: nn.Module, what: str) -> list[ExpertsModule]:
    """All experts modules of a model, in layer order. DaliError if there are none or they differ in shape."""
    modules = [describe(name, module) for name, module in experts_modules(model).items()]
    if not modules:
        config: Any = getattr(model, "config", None)
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        if any((getattr(config, name, None) or 0) > 1 for name in COUNTS):
            raise DaliError(
                f"{what} has experts that dali cannot take over: transformers' code of {type(model).__name__} does not route "
                "through its experts interface.",
                "Run this model with transformers, or choose one of those in docs/MODELS.md.",
            )
        raise DaliError(
            f"{what} is not a Mixture-of-Experts model that dali can run: {type(model).__name__} has no routed experts.",
            "dali is for MoE models (Mixtral, Qwen3-MoE, DeepSeek-V2, OLMoE, gpt-oss, ...); "
            "run dense ones with transformers or llama.cpp.",
        )
    if any((module.experts, module.shape) != (modules[0].experts, modules[0].shape) for module in modules):
        raise DaliError(
            f"The MoE layers of {what} differ in the number or shape of their experts.",
            "Run this model with transformers.",
        )
    return modules


def strip_experts(model: nn.Module) -> None:
    """Take the experts' parameters out of a model on meta."""
    for name, module in experts_modules(model).items():
        strip(module, *module._parameters)
        parent: Any = model.get_submodule(name.rpartition(".")[0])
        parent._is_hf_initialized = True  # where it is what initialises its experts


def strip(module: nn.Module, *names: str) -> None:
    """Take parameters out of a module on meta, so that loading neither reads nor misses them."""
    for name in names:
        module._parameters[name] = None
    module._is_hf_initialized = True  # type: ignore[assignment]  # _init_weights would touch the missing parameters


def install(model: Any, layers: Sequence[DaliLayer]) -> None:
    """Give each experts module its dali layer, and refuse what would silently lose experts."""
    for module, layer in zip(experts_modules(model).values(), layers, strict=True):
        set_dali_layer(module, layer)
    model.set_experts_implementation(IMPLEMENTATION)

    def save_pretrained(*args: Any, **kwargs: Any) -> None:
        raise DaliError(
            "save_pretrained would write this model without its experts, which dali holds.",
            "Save the model before dali.attach, or copy the directory it was loaded from.",
        )

    def set_experts_implementation(implementation: str) -> None:
        raise DaliError(
            f"This model cannot switch to {implementation!r} experts: dali holds them.",
            "Load it again with transformers to use its own.",
        )

    model.save_pretrained = save_pretrained
    model.set_experts_implementation = set_experts_implementation


def routers(model: nn.Module, hidden: int) -> list[nn.Module] | None:
    """The router of each MoE layer: the one sibling of its experts named `gate` or `router` that answers gate inputs with
    (logits, weights, expert ids). None where a layer has no such module."""
    routers = []
    for name in experts_modules(model):
        parent = model.get_submodule(name.rpartition(".")[0])
        named = [child for label, child in parent.named_children() if label in ROUTERS]
        if len(named) != 1 or not _routes(named[0], hidden):
            return None
        routers += named
    return routers


def _routes(router: nn.Module, hidden: int) -> bool:
    """Whether a router maps one gate input to (logits [1, experts], weights and integer ids [1, top_k])."""
    parameter = next(router.parameters())
    try:
        with torch.inference_mode():
            out = router(torch.zeros(1, hidden, dtype=parameter.dtype, device=parameter.device))
        return len(out) == 3 and out[1].shape == out[2].shape and not out[2].is_floating_point()
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False


def scores(routers: Sequence[Any], config: Any) -> Callable[[int, Tensor], Tensor]:
    """(MoE layer, gate inputs [tokens, hidden]) -> what its router scores them, float32 [tokens, experts]."""
    return lambda layer, hidden: router_scores(routers[layer](hidden)[0], config)


def router_scores(logits: Tensor, config: Any) -> Tensor:
    """What a router answered first as probabilities, float32 [tokens, experts]: some say logits, some their softmax already."""
    logits = logits.float()
    if getattr(config, "scoring_func", None) == "sigmoid":
        return logits.sigmoid()
    sums = logits.sum(-1)
    if logits.min() >= 0 and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        return logits
    return logits.softmax(-1)
