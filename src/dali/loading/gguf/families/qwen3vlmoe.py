"""Qwen3-VL's MoE models: their text part, which is Qwen3-MoE where there are no images."""

from __future__ import annotations

from dataclasses import replace

from dali.loading.gguf.families import qwen3moe

FAMILY = replace(qwen3moe.FAMILY, architecture="qwen3vlmoe")
