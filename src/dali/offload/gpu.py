"""Opening a GPU for a model's experts: what its memory is for, and the native layers with the kernels they want."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from dali.compiled import library
from dali.devices.cuda import Gpu, GpuSlots
from dali.engine.engine import Engine
from dali.engine.request import Request
from dali.engine.sequence import Sequence
from dali.errors import DaliError, parameter
from dali.hardware import profile as profiles
from dali.hardware.profile import Profile
from dali.kernels import native
from dali.kernels.expert import ExpertLayout
from dali.kernels.gpu.compiler import cubin
from dali.kernels.gpu.experts import PASSES, experts_macros
from dali.kernels.native.experts import ExpertRecords, native_layout
from dali.kernels.native.library import DTYPES
from dali.loading.loaded import LoadedModel
from dali.options import LoadOptions
from dali.runtime.gpu import GpuExecutor
from dali.runtime.prefetch import Predictor
from dali.step.kv import INITIAL_TOKENS
from dali.store.cache import cache_root
from dali.units import size

MOST_AHEAD = 64  # ids that are predicted of later layers, a token
TEMPORARIES = 2**30  # bytes left to torch: activations, libraries' workspaces, fragmentation


def open_gpu(options: LoadOptions, loaded: LoadedModel, engine: Engine, gpu: Gpu | None = None) -> GpuSlots:
    """The slots of the GPU that `options` names, for a model that still is on the CPU. DaliError where it has no memory left for
    experts beside dense weights, keys and values of the whole context, and temporaries."""
    if not native.enabled():
        raise DaliError(
            f"Device {options.device!r} needs dali's compiled kernels, which are missing or turned off.",
            f"Install a C++ compiler and reinstall dali, or use {parameter('device')} cpu.",
        )
    gpu = gpu or Gpu(options.device)
    free, dense, kept = gpu.free_bytes(), loaded.dense_bytes, kv_bytes(engine, loaded.ctx_size)
    room = free - dense - kept - TEMPORARIES
    if room < 0:
        raise DaliError(
            f"{gpu.name} has {size(free)} free; {loaded.name} needs {size(dense)} for dense weights, {size(kept)} for the keys "
            f"and values of {loaded.ctx_size} tokens, and {size(TEMPORARIES)} to work in.",
            f"Lower {parameter('ctx_size')}, close other programs that use the GPU, or use {parameter('device')} cpu.",
        )
    asked = options.vram_bytes
    budget = room if asked is None else min(asked, room)
    return GpuSlots(gpu, layers_maker(gpu, loaded), loaded.layout.record_bytes, budget)


def layers_maker(gpu: Gpu, loaded: LoadedModel) -> Callable[[int], Any]:
    """slots -> the native layers of a model's experts."""

    def module(name: str, macros: dict[str, int]) -> Any:
        return library.GpuModule(gpu.native, cubin(name, macros, gpu.native.sm, cache_root() / "cubins"))

    def make(slots: int) -> Any:
        pool, shape = loaded.pool, loaded.layout.shape
        layers = library.GpuLayers(
            gpu.native,
            module("common", {}),
            pool.experts,
            loaded.top_k,
            shape.hidden,
            GpuExecutor.most_tokens,
            GpuExecutor.most_tokens * MOST_AHEAD,
            DTYPES[next(loaded.model.parameters()).dtype],
            DTYPES[torch.float32],
            loaded.layout.record_bytes,
            slots,
        )
        modules: dict[ExpertLayout, list[Any]] = {}
        for layout, records in zip(pool.layouts, pool.records, strict=True):
            if layout not in modules:
                modules[layout] = [module("experts", experts_macros(layout, passes)) for passes in PASSES]
            layers.add(native_layout(layout), ExpertRecords(layout, records)._addresses, *modules[layout])
        return layers

    return make


def kv_bytes(engine: Engine, tokens: int) -> int:
    """What a sequence of so many tokens keeps, told by a short one."""
    short = Sequence(Request((0, 1), limit=3))
    for _ in engine.score(short):
        pass
    return short.state.nbytes_at(math.ceil(tokens / INITIAL_TOKENS))


def nearest_profile(gpu_bytes: int) -> Profile:
    """The published profile whose GPU's memory is nearest."""
    known = [profiles.load(name) for name in profiles.known()]
    return min(known, key=lambda profile: abs(math.log(profile["gpu_memory"] / gpu_bytes)))


def move_dense(loaded: LoadedModel, device: GpuSlots, predictor: Predictor | None) -> Predictor | None:
    """Move the model's dense part to the GPU, and a predictor with it. DaliError where it does not fit."""
    place = device.gpu.place
    try:
        loaded.model.to(place)
        return None if predictor is None else predictor.to(place)
    except torch.OutOfMemoryError as error:
        raise DaliError(
            f"{device.name} has no room left for the dense weights of {loaded.name}, {size(loaded.dense_bytes)}.",
            f"Close other programs that use the GPU, or lower {parameter('vram')}.",
        ) from error
