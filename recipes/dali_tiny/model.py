"""dali-tiny in PyTorch: Qwen3-MoE, written for quick training on a CPU.

8 layers of width 192, 6 query and 2 key-value heads of 32 with q/k RMSNorm, RoPE, 20 SwiGLU experts of width
64 of which each token takes the best 4 (weights renormalised), embeddings tied: 7.5 M parameters. The routers
are kept balanced by the usual auxiliary loss over a batch that mixes all the domains, so that single experts
may specialise.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from tokens import VOCABULARY
from torch import Tensor
from torch.nn import Module, ModuleList, Parameter

LAYERS, HIDDEN, CONTEXT = 8, 192, 512
HEADS, KEY_VALUE_HEADS, HEAD_DIM = 6, 2, 32
EXPERTS, TOP_K, EXPERT_WIDTH = 20, 4, 64
ROPE_THETA, NORM_EPS = 10000.0, 1e-6
ROUTER_Z_LOSS = 0.02


class Experts(torch.autograd.Function):
    """y_t = sum over the chosen experts e of w_te * down_e(silu(gate_e x_t) * up_e x_t)

    x [tokens, hidden], weights and chosen [tokens, top-k], gate_up [experts, 2 * width, hidden],
    down [experts, hidden, width]. The (token, slot) pairs are rows in the order of their experts.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        tokens, top_k = chosen.shape
        experts, width = gate_up.shape[0], gate_up.shape[1] // 2
        order = torch.argsort(chosen.reshape(-1), stable=True)
        ends = torch.bincount(chosen.reshape(-1), minlength=experts).cumsum(0).tolist()
        spans = list(zip([0, *ends[:-1]], ends, strict=True))
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(tokens * top_k)
        token = order // top_k
        rows, row_weights = x[token], weights.reshape(-1)[order].unsqueeze(1)
        projected = rows.new_empty(tokens * top_k, 2 * width)
        for expert, (start, end) in enumerate(spans):
            torch.mm(rows[start:end], gate_up[expert].T, out=projected[start:end])
        gate, up = projected[:, :width], projected[:, width:]
        sigmoid = torch.sigmoid(gate)
        hidden = (gate * sigmoid).mul_(up)
        weighted = hidden * row_weights
        out = rows.new_empty(tokens * top_k, x.shape[1])
        for expert, (start, end) in enumerate(spans):
            torch.mm(weighted[start:end], down[expert].T, out=out[start:end])
        ctx.save_for_backward(
            rows, row_weights, projected, sigmoid, hidden, weighted, token, order, inverse, gate_up, down
        )
        ctx.spans, ctx.shape = spans, (tokens, top_k)
        return out[inverse].view(tokens, top_k, -1).sum(1)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor, None, Tensor, Tensor]:
        rows, row_weights, projected, sigmoid, hidden, weighted, token, _, inverse, gate_up, down = (
            ctx.saved_tensors
        )
        (tokens, top_k), width = ctx.shape, gate_up.shape[1] // 2
        d_out = d_y[token]
        d_weighted, d_down = torch.empty_like(weighted), torch.empty_like(down)
        for expert, (start, end) in enumerate(ctx.spans):
            torch.mm(d_out[start:end], down[expert], out=d_weighted[start:end])
            torch.mm(d_out[start:end].T, weighted[start:end], out=d_down[expert])
        d_weights = (d_weighted * hidden).sum(1)[inverse].view(tokens, top_k)
        d_hidden = d_weighted.mul_(row_weights)
        gate, up = projected[:, :width], projected[:, width:]
        silu = gate * sigmoid
        d_projected = torch.empty_like(projected)
        torch.mul(d_hidden, silu, out=d_projected[:, width:])
        torch.mul(d_hidden.mul_(up), sigmoid + silu * (1 - sigmoid), out=d_projected[:, :width])
        d_rows, d_gate_up = torch.empty_like(rows), torch.empty_like(gate_up)
        for expert, (start, end) in enumerate(ctx.spans):
            torch.mm(d_projected[start:end], gate_up[expert], out=d_rows[start:end])
            torch.mm(d_projected[start:end].T, rows[start:end], out=d_gate_up[expert])
        return d_rows[inverse].view(tokens, top_k, -1).sum(1), d_weights, None, d_gate_up, d_down


class FusedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of x @ weight.T against the targets, in chunks of rows.

    The gradient is made at once and the full logits never exist. x [tokens, hidden],
    weight [vocabulary, hidden].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        n, total, chunk = x.shape[0], 0.0, 512
        d_x, d_weight = torch.empty_like(x), torch.zeros_like(weight)
        buffer = x.new_empty(min(chunk, n), weight.shape[0])
        for start in range(0, n, chunk):
            part, target = x[start : start + chunk], targets[start : start + chunk]
            logits = torch.mm(part, weight.T, out=buffer[: len(part)])
            row = torch.arange(len(part))
            largest, own = logits.amax(-1), logits[row, target]
            exponential = logits.sub_(largest.unsqueeze(1)).exp_()
            normaliser = exponential.sum(-1)
            total += float((normaliser.log() + largest - own).sum())
            d_logits = exponential.mul_((1.0 / (n * normaliser)).unsqueeze(1))
            d_logits[row, target] -= 1.0 / n
            torch.mm(d_logits, weight, out=d_x[start : start + chunk])
            d_weight.addmm_(d_logits.T, part)
        ctx.save_for_backward(d_x, d_weight)
        return x.new_tensor(total / n)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        d_x, d_weight = ctx.saved_tensors
        return d_x * upstream, d_weight * upstream, None


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, NORM_EPS)


def normal(*shape: int, std: float = 0.02) -> Parameter:
    return Parameter(torch.randn(*shape) * std)


class Layer(Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_norm, self.ffn_norm = Parameter(torch.ones(HIDDEN)), Parameter(torch.ones(HIDDEN))
        self.query = normal(HEADS * HEAD_DIM, HIDDEN)
        self.key, self.value = (normal(KEY_VALUE_HEADS * HEAD_DIM, HIDDEN) for _ in range(2))
        self.out = normal(HIDDEN, HEADS * HEAD_DIM, std=0.02 / math.sqrt(2 * LAYERS))
        self.query_norm, self.key_norm = Parameter(torch.ones(HEAD_DIM)), Parameter(torch.ones(HEAD_DIM))
        self.router = normal(EXPERTS, HIDDEN)
        self.gate_up = normal(EXPERTS, 2 * EXPERT_WIDTH, HIDDEN, std=0.05)
        self.down = normal(EXPERTS, HIDDEN, EXPERT_WIDTH)

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        def heads(weight: Tensor) -> Tensor:
            return (x @ weight.T).unflatten(-1, (-1, HEAD_DIM))  # [batch, tokens, heads, head_dim]

        def rotated(y: Tensor) -> Tensor:
            y = y.transpose(1, 2)
            first, second = y.chunk(2, -1)
            return y * cos + torch.cat([-second, first], -1) * sin

        query = rotated(rms_norm(heads(self.query), self.query_norm))
        key = rotated(rms_norm(heads(self.key), self.key_norm))
        value = heads(self.value).transpose(1, 2)
        key, value = (each.repeat_interleave(HEADS // KEY_VALUE_HEADS, 1) for each in (key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return mixed.transpose(1, 2).reshape(*x.shape[:2], -1) @ self.out.T

    def experts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [tokens, hidden] -> y [tokens, hidden], auxiliary loss, load [experts] (shares that sum to 1)."""
        logits = x @ self.router.T
        probability = logits.softmax(-1)
        weights, chosen = probability.topk(TOP_K, -1)
        load = torch.bincount(chosen.reshape(-1), minlength=EXPERTS).float() / chosen.numel()
        balance = EXPERTS * (load * probability.mean(0)).sum()
        auxiliary = balance + ROUTER_Z_LOSS * logits.logsumexp(-1).pow(2).mean()
        weights = weights / weights.sum(-1, keepdim=True)
        return Experts.apply(x, weights, chosen, self.gate_up, self.down), auxiliary, load


class DaliTiny(Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = normal(VOCABULARY, HIDDEN), Parameter(torch.ones(HIDDEN))
        self.layers = ModuleList(Layer() for _ in range(LAYERS))
        frequency = 1.0 / ROPE_THETA ** (torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
        angle = torch.outer(torch.arange(CONTEXT).float(), frequency).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def states(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ids [batch, tokens] -> normed final states, mean auxiliary loss, load [layers, experts]."""
        x, cos, sin = self.embedding[ids], self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        auxiliary, loads = 0.0, []
        for layer in self.layers:
            x = x + layer.attention(rms_norm(x, layer.input_norm), cos, sin)
            y, layer_auxiliary, load = layer.experts(rms_norm(x, layer.ffn_norm).reshape(-1, HIDDEN))
            x = x + y.view_as(x)
            auxiliary = auxiliary + layer_auxiliary
            loads.append(load)
        return rms_norm(x, self.norm), auxiliary / LAYERS, torch.stack(loads)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [batch, tokens, vocabulary]."""
        return self.states(ids)[0] @ self.embedding.T

    def loss(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-entropy in nats a token, auxiliary loss, load."""
        x, auxiliary, load = self.states(ids)
        return (
            FusedCrossEntropy.apply(x.reshape(-1, HIDDEN), self.embedding, targets.reshape(-1)),
            auxiliary,
            load,
        )
