"""Calibrating a routing predictor: once a model, kind and distance, on the text that ships inside; kept in the user cache."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dali.engine.engine import Engine
from dali.engine.request import Request
from dali.engine.sequence import Sequence
from dali.errors import DaliError, parameter
from dali.offload.fit import CALIBRATED, FITS
from dali.offload.gpu_model import own_layers
from dali.progress import Meter
from dali.runtime.predict import GateShift, LinearMap
from dali.runtime.prefetch import Predictor
from dali.store import whole
from dali.store.cache import cache_root

VERSION = "1"
TEXT = Path(__file__).parent.parent / "texts" / "calibration.txt"
WINDOW = 512  # tokens of one calibration sequence


def load_predictor(
    kind: str,
    distance: int,
    engine: Engine,
    tokenizer: Any,
    routers: Many[Any],
    top_k: int,
    model: str,
    fingerprint: str,
    meter: Meter,
) -> Predictor:
    """The predictor called `kind`, calibrated now if it was not before. `engine` must run its experts on the CPU meanwhile.

    model, fingerprint: name the model in the cache and tell whether it changed. An interrupted calibration leaves nothing.
    """
    if kind == "next_gate":
        return GateShift(routers, distance)
    text = TEXT.read_text(encoding="utf-8")
    key = f"{VERSION} {fingerprint} {xxhash.xxh3_64_hexdigest(text.encode())}"
    path = cache_root() / "calibration" / model / f"{kind}-{distance}.safetensors"
    found = _read(path, key)
    if found is None:
        tokens = tokenizer(text, verbose=False)["input_ids"]
        with own_layers(engine), _unlimited(engine):
            found = calibrate(kind, distance, engine, tokens, routers, meter)
        _write(path, key, found)
    like = next(engine.model.parameters())
    if kind == "residual":
        return GateShift(routers, distance, [shift.to(like) for shift in found])
    return LinearMap([weights.to(like.device) for weights in found], distance, top_k)


@contextmanager
def _unlimited(engine: Engine) -> Iterator[None]:
    """Let states take what they need meanwhile: a budget is of what is computed on an accelerator, and this is not."""
    budget = engine.budget
    engine.limit_states(None)
    try:
        yield
    finally:
        engine.limit_states(budget)


def calibrate(
    kind: str, distance: int, engine: Engine, tokens: list[int], routers: Many[Any], meter: Meter
) -> list[Tensor]:
    """Run the model on `tokens` and fit a predictor for each layer that has one `distance` ahead."""
    fits = [FITS[kind]() for _ in range(len(routers) - distance)]
    window = min(WINDOW, engine.model.config.get_text_config().max_position_embeddings - 1)
    tokens = tokens[: CALIBRATED[kind]]
    seen: list[tuple[Tensor, Tensor]] = []  # gate input and router logits, a layer

    def watch(router: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        seen.append((inputs[0].reshape(-1, inputs[0].shape[-1]), outputs[0]))

    handles = [router.register_forward_hook(watch) for router in routers]
    advance = meter(f"Calibrating {kind} prefetching", len(tokens))
    try:
        for begin in range(0, len(tokens), window):
            piece = tokens[begin : begin + window]
            sequence = Sequence(Request(tuple(piece), limit=len(piece) + 1))
            for _ in engine.score(sequence):
                for layer, fit in enumerate(fits):
                    fit.add(seen[layer][0], *seen[layer + distance])
                seen.clear()
            advance(len(piece))
    finally:
        for handle in handles:
            handle.remove()
    return [fit.solve() for fit in fits]


def _read(path: Path, key: str) -> list[Tensor] | None:
    """The tensors of a calibration made for `key`; None if there is none (or of another version, or damaged)."""
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("dali_calibration") != key:
                return None
            return [file.get_tensor(str(layer)) for layer in range(len(file.keys()))]
    except (OSError, SafetensorError):
        return None


def _write(path: Path, key: str, tensors: list[Tensor]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        named = {str(layer): tensor.contiguous() for layer, tensor in enumerate(tensors)}
        with whole.written(path) as temporary:
            save_file(named, temporary, {"dali_calibration": key})
    except (OSError, SafetensorError) as error:
        raise DaliError(
            f"Cannot keep the calibration in {path.parent} ({error}).",
            f"Make the folder writable, set DALI_CACHE_DIR to another one, or use {parameter('prefetch')} none.",
        ) from error
