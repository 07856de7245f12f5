"""MoE layers in Qwen3-30B-A3B's shape for measuring the runtime: sizes, routing, a prediction, costs.

Routing is drawn at random around expert popularities that differ from layer to layer; the prediction is made to be right about
all but the last of each token's experts.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from dali.hardware.cost import CostModel, ExpertSize
from dali.hardware.profile import load
from dali.hooks.seam import strip_experts
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import get_format
from dali.runtime.predict import LinearMap

LAYERS, EXPERTS, TOP_K, HIDDEN, INTERMEDIATE = 48, 128, 8, 2048, 768
SHAPE = {"layers": LAYERS, "experts": EXPERTS, "top_k": TOP_K, "hidden": HIDDEN, "intermediate": INTERMEDIATE}
FORMAT = "w4"
SPREAD = 0.5  # of the popularities' logarithms: 32 tokens then reach some 104 of the experts
WARM_UP = 30  # steps, until the guard of the swaps has judged


class Foresight:
    """A prediction as costly as the ridge's, right about all but the last of each token's experts."""

    def __init__(self, place: torch.device | str = "cpu", layers: int = LAYERS) -> None:
        maps = [(0.02 * torch.randn(HIDDEN + 1, EXPERTS)).to(place) for _ in range(layers - 1)]
        self._map = LinearMap(maps, 1, TOP_K)
        self.routing = torch.empty(0)  # of the present step, [layers, batch, top_k]

    def predict(self, layer: int, hidden: torch.Tensor) -> tuple[int, torch.Tensor] | None:
        predicted = self._map.predict(layer, hidden)
        if predicted is not None:
            predicted[1][:, :-1] = self.routing[layer + 1, :, :-1]
        return predicted


class AlwaysOn:
    """A guard that never stops anything."""

    on = True

    def note(self, cost: float, benefit: float) -> None:
        pass


def no_kernel(*arguments: Any) -> None:
    pass


def cost_model(profile: str) -> CostModel:
    shape = ExpertShape(HIDDEN, INTERMEDIATE, Activation("silu"))
    size = {FORMAT: ExpertLayout(shape, get_format(FORMAT)).weight_bytes}
    return CostModel(load(profile), ExpertSize(HIDDEN, INTERMEDIATE, 3, size), FORMAT, max_tokens=256)


def dense_model(config: Qwen3MoeConfig) -> Qwen3MoeForCausalLM:
    """All of the model but its experts, without memory."""
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    strip_experts(model)
    return model


def qwen3_30b_a3b() -> Qwen3MoeConfig:
    """The published config.json of Qwen/Qwen3-30B-A3B, as far as it gives sizes."""
    return Qwen3MoeConfig(
        vocab_size=151936,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        moe_intermediate_size=INTERMEDIATE,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        norm_topk_prob=True,
        tie_word_embeddings=False,
    )


def routing(batch: int, steps: int) -> list[torch.Tensor]:
    """Top-k ids [layers, batch, top_k] a step: popularity by layer, and a draw of its own for every token."""
    generator = torch.Generator().manual_seed(0)
    popularity = SPREAD * torch.randn(LAYERS, 1, EXPERTS, generator=generator)
    drawn = []
    for _ in range(steps):
        gumbel = -torch.empty(LAYERS, batch, EXPERTS).exponential_(generator=generator).log()
        drawn.append((popularity + gumbel).topk(TOP_K, dim=-1).indices)
    return drawn


def microseconds(seconds: Sequence[float]) -> tuple[float, float]:
    """Median and 90th percentile."""
    deciles = statistics.quantiles(seconds, n=10)
    return round(1e6 * deciles[4], 1), round(1e6 * deciles[8], 1)
