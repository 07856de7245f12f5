"""What keeps a model from running, as far as its headers tell: refused here in the words of loading."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from dali.doctor.outline import SafetensorsOutline
from dali.doctor.sizes import CannotTell
from dali.errors import DaliError, parameter

READ = ("mxfp4", "fp8")  # methods of quantization that loading reads
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def check_config(outline: SafetensorsOutline) -> None:
    """DaliError for a model that transformers does not have, or one quantized in a way that dali does not read."""
    kind = outline.config.get("model_type")
    if not isinstance(kind, str):
        raise DaliError(
            f"{outline.name} has a config.json without a model_type.",
            "It must be the config.json of a model that transformers knows.",
        )
    if known_to_transformers(kind) is False:
        raise DaliError(
            f"{outline.name} is a {kind} model, which the transformers that is installed does not have.",
            "Install a newer one: pip install -U transformers.",
        )
    method = quantization(outline)
    if method and method not in READ:
        raise DaliError(
            f"{outline.name} is quantized with {method}, which dali cannot read.",
            f"Use the model in bfloat16 or FP8; dali quantizes its experts itself ({parameter('quant')} w8 or w4).",
        )


def check_experts(outline: SafetensorsOutline, found: bool) -> None:
    """DaliError for a dense model, or experts that transformers does not route through its interface."""
    counts = [outline.text[name] for name in COUNTS if name in outline.text]
    counted = any(type(count) is int and count > 1 for count in counts)
    routed = routes_experts(str(outline.text.get("model_type") or outline.config["model_type"]))
    if not found and not counted and (counts or not routed):
        raise DaliError(
            f"{outline.name} is not a Mixture-of-Experts model that dali can run: it has no routed experts.",
            "dali is for MoE models (Mixtral, Qwen3-MoE, DeepSeek-V2, OLMoE, gpt-oss, ...); "
            "run dense ones with transformers or llama.cpp.",
        )
    if routed is False:
        raise DaliError(
            f"{outline.name} has experts that dali cannot take over: transformers' code of "
            f"{outline.config['model_type']} does not route through its experts interface.",
            "Run this model with transformers, or choose one of those in docs/MODELS.md.",
        )
    if not found:
        raise CannotTell(
            f"{outline.name} has experts under names that `dali doctor` does not know.",
            "Load it with `dali run`, which asks transformers.",
        )


def quantization(outline: SafetensorsOutline) -> str:
    """How the files say that their weights are quantized; "" for not at all."""
    said = outline.config.get("quantization_config")
    method = said.get("quant_method") if isinstance(said, dict) else said
    return "" if method is None else str(method)


def known_to_transformers(kind: str) -> bool | None:
    """Whether the installed transformers has a model type; None where its files do not say. To import it would take seconds."""
    root = _transformers()
    if root is None:
        return None
    if _folder(root, kind) is not None:
        return True
    texts = [root / "auto" / name for name in ("configuration_auto.py", "auto_mappings.py")]
    found = [text.read_text(encoding="utf-8") for text in texts if text.is_file()]
    return any(f'"{kind}"' in text for text in found) if found else None


def routes_experts(kind: str) -> bool | None:
    """Whether transformers' code of a model type routes through its experts interface; None where that cannot be told."""
    root = _transformers()
    folder = None if root is None else _folder(root, kind)
    if folder is None:
        return None
    code = sorted(folder.glob("modeling_*.py"))
    return (
        any("use_experts_implementation" in file.read_text(encoding="utf-8") for file in code)
        if code
        else None
    )


@cache
def _transformers() -> Path | None:
    spec = find_spec("transformers")
    root = None if spec is None or spec.origin is None else Path(spec.origin).parent / "models"
    return root if root is not None and root.is_dir() else None


def _folder(root: Path, kind: str) -> Path | None:
    if not re.fullmatch(r"[\w-]+", kind):
        return None
    names = (kind, kind.replace("-", "_"), kind.removesuffix("_text"))
    return next((root / name for name in names if (root / name).is_dir()), None)
