"""Opening a GPU for a model's experts: what its memory is for, and the native layers with the kernels they want."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from dali.compiled import library
from dali.devices import Device
from dali.devices.cuda import Gpu, GpuSlots, gpu_errors
from dali.engine.budget import StateBudget
from dali.errors import DaliError, parameter
from dali.fused.model import DecodingModel
from dali.hardware import own
from dali.hardware import profile as profiles
from dali.hardware.machine import MEMORY_SHARE
from dali.hardware.profile import Profile
from dali.kernels import native
from dali.kernels.expert import ExpertLayout
from dali.kernels.gpu.compiler import cubin
from dali.kernels.gpu.experts import PASSES, experts_macros
from dali.kernels.native.experts import native_layout
from dali.kernels.native.library import DTYPES
from dali.loading.loaded import LoadedModel
from dali.loading.room import DEVICE_WORK, no_device_room, split_memory
from dali.offload.gpu_model import GpuModel
from dali.offload.vram import whole_context
from dali.options import LoadOptions
from dali.policies.once.vram import Experts
from dali.runtime.gpu import GpuExecutor
from dali.runtime.prefetch import Predictor
from dali.step.size import StateSize
from dali.store.cache import cache_root
from dali.units import size

MOST_AHEAD = 64  # ids that are predicted of later layers, a token
TEMPORARIES = 2**30  # bytes left to torch: activations, libraries' workspaces, fragmentation
LOGITS = DEVICE_WORK  # where torch has but the logits


def check_native(options: LoadOptions) -> None:
    """DaliError where there are no compiled kernels, without which a GPU is of no use."""
    if not native.enabled():
        raise DaliError(
            f"Device {options.device!r} needs dali's compiled kernels, which are missing or turned off.",
            f"Install a C++ compiler and reinstall dali, or use {parameter('device')} cpu.",
        )


def gpu_model(gpu: Gpu, loaded: LoadedModel, decoder: DecodingModel | None) -> GpuModel | None:
    """The whole model by dali's kernels, where it has no parts that there are none for."""
    if decoder is None:
        return None
    try:
        with gpu_errors(gpu.name):
            return GpuModel(gpu, loaded.model, decoder, module_maker(gpu), loaded.ctx_size)
    except ValueError:
        return None


def open_gpu(
    options: LoadOptions,
    loaded: LoadedModel,
    state: StateSize,
    gpu: Gpu,
    model: GpuModel | None,
    experts: Experts,
) -> tuple[GpuSlots, StateBudget]:
    """The slots of a GPU, for a model that still is on the CPU, and what all sequences together may keep there: as much as one of
    the whole context, or as several where that is worth it. DaliError where it has no memory left for experts beside that, the
    dense part, and temporaries. `state`: the size of a sequence's."""
    keeps = whole_context(state, loaded.ctx_size, GpuExecutor.most_tokens, options)
    dense, temporaries = (loaded.dense_bytes, TEMPORARIES) if model is None else (model.bytes, LOGITS)
    free = gpu.free_bytes()
    room = free - dense - keeps.moving - temporaries
    if room < keeps.whole:
        there, close = f"{gpu.name} has {size(free)} free", "close other programs that use the GPU"
        raise no_device_room(there, loaded.name, dense, keeps, temporaries, close)
    split = split_memory(options, room, keeps.whole, experts)
    slots = GpuSlots(gpu, layers_maker(gpu, loaded), loaded.layout.record_bytes, split.experts)
    return slots, StateBudget(split.states, state)


def module_maker(gpu: Gpu) -> Callable[[str, dict[str, int]], Any]:
    """(file, macros) -> its compiled kernels; each is loaded once."""

    def module(name: str, macros: dict[str, int]) -> Any:
        key = name, *macros.items()
        if key not in modules:
            data = cubin(name, macros, gpu.sm, cache_root() / "cubins")
            modules[key] = library.GpuModule(gpu.native, data)
        return modules[key]

    modules: dict[Any, Any] = {}
    return module


def layers_maker(gpu: Gpu, loaded: LoadedModel) -> Callable[[int], Any]:
    """slots -> the native layers of a model's experts."""

    module = module_maker(gpu)

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
        for index, layout in enumerate(pool.layouts):
            handle = pool.lease(index).native
            assert handle is not None
            if layout not in modules:
                modules[layout] = [module("experts", experts_macros(layout, passes)) for passes in PASSES]
            layers.add(native_layout(layout), handle._addresses, *modules[layout])
        return layers

    return make


def nearest_profile(gpu_bytes: int) -> Profile:
    """The published profile whose GPU's memory is nearest."""
    known = [profiles.load(name) for name in profiles.known()]
    return min(known, key=lambda profile: abs(math.log(profile["gpu_memory"] / gpu_bytes)))


def unnamed_profile(gpu: Gpu, notify: Callable[[str], None]) -> Profile:
    """What plans go by where nobody named a profile: this machine's own, if this GPU was measured with it, else the nearest."""
    memory, mine = gpu.memory()[1], own.find(notify)
    if mine is not None and mine.has_accelerator and abs(mine["gpu_memory"] / memory - 1) < MEMORY_SHARE:
        notify(f"Plans go by {own.origin(mine)}.")
        return mine
    profile = nearest_profile(memory)
    what = "This machine" if mine is None else gpu.name
    notify(
        f"{what} was never measured: plans go by the published profile {profile.name}, whose GPU is nearest in memory. "
        f"`dali bench hw` measures, and {parameter('profile')} names another."
    )
    return profile


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


def tell_pinned(device: Device, notify: Callable[[str], None]) -> None:
    """Say where experts could not be page-locked."""
    if isinstance(device, GpuSlots) and device.unpinned:
        notify(
            f"{size(device.unpinned)} of experts could not be page-locked: copies to {device.name} are slower. "
            "Raise the limit on locked memory (`ulimit -l`) or free RAM."
        )
