"""Opening a simulated accelerator for a model's experts: what the memory of its profile is for."""

from __future__ import annotations

from dataclasses import replace

import torch

from dali.devices import SimDevice
from dali.devices.dependencies import dependencies
from dali.engine.budget import StateBudget
from dali.engine.engine import Engine
from dali.fused import latent
from dali.hardware.profile import Profile
from dali.kernels import native
from dali.kernels.kept_rows import row_bytes
from dali.loading.loaded import LoadedModel
from dali.loading.room import MOST_STEP, simulated_room, split_memory
from dali.offload.vram import state_size, whole_context
from dali.options import LoadOptions
from dali.policies.once.vram import Experts
from dali.step.size import StateSize


def open_simulated(
    options: LoadOptions, loaded: LoadedModel, engine: Engine, profile: Profile, experts: Experts
) -> tuple[SimDevice, StateBudget]:
    """The device with its budget for experts, and what all sequences together may keep beside them. DaliError where it has no
    memory for one whole context beside the dense weights; UsageError where experts shall have more than that leaves."""
    size = _state_size(engine, options)
    keeps = whole_context(size, loaded.ctx_size, MOST_STEP, options)
    room = simulated_room(options, profile, loaded.name, loaded.dense_bytes, keeps)
    split = split_memory(options, room, keeps.whole, experts)
    device = SimDevice(split.experts, name=options.device, seed=options.seed, dependencies=dependencies())
    return device, StateBudget(split.states, size)


def _state_size(engine: Engine, options: LoadOptions) -> StateSize:
    """What sequences will keep. The model is not fused yet: where it will keep latents, it makes keys and values of them."""
    found = state_size(engine)
    widths = latent.kept_widths(engine.model) if native.enabled() else []
    if len(widths) != len(found.layers):
        return found

    dtype = engine.model.dtype
    item = dtype.itemsize if dtype in native.ATTENTION_DTYPES else torch.float32.itemsize
    rows = [row_bytes(width) if options.in_q8 else width * item for width in widths]
    return replace(
        found, layers=tuple((row, window) for row, (_, window) in zip(rows, found.layers, strict=True))
    )
