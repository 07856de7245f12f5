"""What `dali run` would decide for a model here: by the same functions as loading, from sizes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from dali.doctor.sizes import ITEM, ExpertFormat, ModelSizes, quantized
from dali.errors import DaliError, parameter
from dali.hardware.cost import CostModel, DiskCosts, ExpertSize, disk_costs
from dali.hardware.profile import Profile
from dali.loading.context import check_range
from dali.loading.room import (
    DEVICE_WORK,
    FEWEST_TOKENS,
    LOADED,
    LOGIT_ROWS,
    MARGIN,
    MOST_STEP,
    Keeps,
    NoRoom,
    accelerates,
    beyond_headroom,
    first_that_fits,
    least_bytes,
    least_step,
    lossy_needs_ram,
    needed,
    no_context,
    nothing_to_fetch,
    out_of_memory,
    share,
    share_rest,
    simulated_room,
    split_memory,
    staged_bytes,
    step_bytes,
    step_tokens,
    too_small,
)
from dali.loading.rope import scale_rope
from dali.options import LoadOptions
from dali.policies.once.alone import weigh
from dali.policies.once.vram import Experts, residents
from dali.policies.whole_layers import WholeLayers
from dali.step.size import Reservation
from dali.store.page_cache import cached_bytes
from dali.units import size

# Bytes of Python, torch and transformers with a small model's modules; doctor_speed.json has `imported_mib`, without these.
IMPORTED = 400 * 2**20
STEP_TOKENS = 512  # prompt tokens of a step with all experts in RAM
MOST_TOKENS = 512  # of an expert, for which times are tabulated
KERNELS = 12  # of a layer's dense part, on an accelerator
RAM, DISK = "RAM", "disk"


class Free(NamedTuple):
    """What this machine has left: bytes of memory, and of the disk of dali's cache (None: not known). `reads`: how experts are
    read from it; None: past the page cache."""

    memory: int
    disk: int | None = None
    reads: DiskCosts | None = None


class Device(NamedTuple):
    """An accelerator: its name, its profile, and whether it is simulated."""

    name: str
    profile: Profile
    simulated: bool


@dataclass(frozen=True)
class Plan:
    """One way to run a model. `slots`: of `all_slots` experts those that RAM holds, of a plan by disk; `resident`: those that an
    accelerator holds, in `vram`, beside what `sequences` of the whole context keep there, `kept`. Sizes in bytes."""

    where: str  # "RAM" or "disk"
    layouts: Sequence[ExpertFormat]
    dtype: str
    packed: bool  # linears, too
    context: int
    dense: int
    experts: int
    states: int
    allowed: int
    slots: int = 0
    all_slots: int = 0
    prefixes: int = 0
    resident: int = 0
    vram: int = 0
    kept: int = 0
    sequences: int = 1
    device: Device | None = None
    store: int = 0  # bytes that packed experts take on disk
    chunk: int = STEP_TOKENS  # tokens of a prompt that a step computes
    in_q8: bool = False  # whether keys and values are kept in 8 bits
    plain: bool = False  # whether experts are read through the page cache
    options: LoadOptions = field(default_factory=LoadOptions)  # which it is made by

    @property
    def format(self) -> str:
        """The experts' formats, for people."""
        return ", ".join(dict.fromkeys(layout.name for layout in self.layouts))

    @property
    def memory(self) -> int:
        """Bytes of RAM that it takes once it runs with its whole context."""
        held = self.experts if self.where == RAM else self.slots * self.slot
        return held + self.dense + self.states

    @property
    def contexts(self) -> str:
        """What an accelerator has room for beside experts, for people."""
        each = f"of {self.context} tokens"
        return f"a context {each}" if self.sequences == 1 else f"{self.sequences} contexts {each}"

    @property
    def slot(self) -> int:
        """Bytes of the largest expert."""
        return max(layout.record for layout in self.layouts)


def make_plan(
    sizes: ModelSizes, options: LoadOptions, free: Free, compiled: bool, device: Device | None = None
) -> Plan:
    """The plan that loading would choose. DaliError: it would refuse, in its words."""
    _, most = scale_rope(sizes.rope, sizes.context, options, sizes.name)
    if options.ctx_size is not None:
        check_range(options.ctx_size, most, sizes.name)
    context = most if options.ctx_size is None else options.ctx_size
    dtype = _dtype(sizes, options, compiled)
    layouts = _candidates(sizes, options)
    experts = [_all(sizes, each) for each in layouts]
    smallest = _all(sizes, sizes.layouts("w4"))
    packed = compiled and quantized(layouts[0][0].name)
    loading = sizes.dense_bytes(dtype, packed and sizes.gguf)
    allowed = free.memory if options.ram_bytes is None else options.ram_bytes
    states = sizes.state_bytes(context, dtype, options.in_q8, STEP_TOKENS)
    asked = options.ram_bytes is not None and options.ctx_size is not None and compiled and device is None
    room = allowed - (beyond_headroom(states) if asked else 0)
    fits = first_that_fits(experts, loading, room)
    chosen = len(layouts) - 1 if fits is None else fits
    plan = Plan(
        RAM,
        layouts[chosen],
        dtype,
        packed,
        context,
        sizes.running_bytes(dtype, packed),
        experts[chosen],
        states,
        allowed,
        all_slots=sizes.moe_layers * sizes.experts,
        store=0 if sizes.gguf and fits is not None else experts[chosen],
        in_q8=options.in_q8,
        options=options,
    )
    if fits is None:
        misfit = out_of_memory(
            sizes.name,
            plan.format,
            needed(experts[-1], loading),
            needed(smallest, loading),
            options.ram_bytes,
            free.memory,
        )
        if not compiled:
            raise misfit
        if options.lossy:
            raise lossy_needs_ram(sizes.name)
        if device is not None and device.simulated:
            disk_costs(device.profile)
        plan = _on_disk(sizes, options, free, plan, loading, device)
    elif device is None and options.prefetch is not None:
        raise nothing_to_fetch(options.prefetch, sizes.name)
    elif device is None and options.ram_bytes is not None:
        plan = _beside(sizes, options, plan)
    _check_disk(sizes, plan, free)
    return plan if device is None else _accelerated(sizes, options, plan, device)


def _candidates(sizes: ModelSizes, options: LoadOptions) -> list[Sequence[ExpertFormat]]:
    """The formats of experts that loading would try, of each MoE layer."""
    if options.quant == "keep" and sizes.fp8:
        raise DaliError(
            f"The experts of {sizes.name} are in FP8, and dali packs no such values.",
            f"Give {parameter('quant')} f32, which holds them, bf16, which rounds them, or w8.",
        )
    names = ["w8", "w4"] if options.quant == "auto" and not sizes.gguf else [options.quant]
    return [sizes.layouts(name) for name in names]


def _dtype(sizes: ModelSizes, options: LoadOptions, compiled: bool) -> str:
    if options.dtype != "auto":
        return options.dtype
    if sizes.gguf:
        return "float32" if compiled else sizes.dtype
    return "float32" if sizes.dtype == "float16" and compiled else sizes.dtype


def _all(sizes: ModelSizes, layouts: Sequence[ExpertFormat]) -> int:
    return sum(sizes.experts * layout.record for layout in layouts)


def _step_bytes(sizes: ModelSizes, staged: bool, tokens: int) -> int:
    """What a step of so many tokens takes for a while; `staged`: experts' rows for an accelerator, too."""
    logits = LOGIT_ROWS * sizes.vocab
    taken = step_bytes(sizes.hidden, sizes.intermediate, sizes.top_k, sizes.widest, tokens, logits)
    return taken + (staged_bytes(tokens, sizes.top_k, sizes.hidden) if staged else 0)


def _beside(sizes: ModelSizes, options: LoadOptions, plan: Plan) -> Plan:
    """The same with as long a context as a budget that was asked for leaves room for. DaliError: for none."""
    used = IMPORTED + LOADED + plan.dense + plan.experts + _step_bytes(sizes, False, STEP_TOKENS)

    def states(tokens: int) -> int:
        return sizes.state_bytes(tokens, plan.dtype, options.in_q8, STEP_TOKENS)

    context = plan.context, options.ctx_size is not None
    shares = share_rest(sizes.name, plan.allowed, used, context, options.cache_ram_bytes, states)
    return replace(plan, context=shares.context, states=states(shares.context))


def _on_disk(
    sizes: ModelSizes, options: LoadOptions, free: Free, plan: Plan, loading: int, device: Device | None
) -> Plan:
    """The same with its experts on disk, and as many in RAM as it has room for. DaliError: for none."""
    step = partial(_step_bytes, sizes, device is not None)
    ram = options.ram_bytes
    allowed = IMPORTED + free.memory - MARGIN if ram is None else ram
    shrinks = device is None and quantized(plan.layouts[0].name)
    if shrinks and plan.packed:
        loading -= replace(sizes, dense=sizes.stored).dense_bytes(plan.dtype, True)
        running = sum(sizes.read_dense(one, plan.dtype, True)[1] for one in sizes.stored)
        plan = replace(plan, dense=plan.dense - running)
    reads = free.reads
    cached = 0 if reads is None else cached_bytes(reads.plain, reads.depth, plan.slot)
    on_gpu = device is not None and not device.simulated  # which keeps keys and values itself
    shortest = min(FEWEST_TOKENS, plan.context)
    asked = plan.context if options.ctx_size is not None else shortest
    chunk = least_step(shrinks)
    fewest, whole = (
        sizes.state_bytes(tokens, plan.dtype, options.in_q8, chunk) for tokens in (shortest, asked)
    )
    least = least_bytes(IMPORTED + cached, loading, step(chunk), sizes.top_k * plan.slot, fewest)
    if least > allowed:
        raise too_small(sizes.name, least + (0 if on_gpu else whole - fewest), ram, allowed)

    def slots(tokens: int) -> int:
        states = sizes.state_bytes(asked, plan.dtype, options.in_q8, tokens)
        return (allowed - IMPORTED - LOADED - plan.dense - cached - step(tokens) - states) // plan.slot

    wanted = sizes.top_k, min(sizes.top_k * sizes.moe_layers, plan.all_slots)
    chunk = STEP_TOKENS
    if not on_gpu and quantized(plan.layouts[0].name):
        chunk = step_tokens(chunk, allowed, step, slots, wanted, shrinks)
    used = IMPORTED + LOADED + plan.dense + cached + step(chunk)

    def states(tokens: int) -> int:
        return 0 if on_gpu else sizes.state_bytes(tokens, plan.dtype, options.in_q8, chunk)

    try:
        shares = share(
            allowed - used,
            used,
            plan.slot,
            (sizes.top_k, min(plan.all_slots, max(allowed // plan.slot, sizes.top_k))),
            (plan.context, options.ctx_size is not None),
            options.cache_ram_bytes,
            states,
        )
    except NoRoom as none:
        if none.tokens:
            raise no_context(plan.context, states(plan.context), none, ram) from None
        raise too_small(sizes.name, none.least, ram, allowed) from None
    plain = reads is not None and reads.plain
    plan = replace(plan, where=DISK, allowed=allowed, store=plan.experts, chunk=chunk, plain=plain)
    return replace(plan, **shares._asdict())


def _accelerated(sizes: ModelSizes, options: LoadOptions, plan: Plan, device: Device) -> Plan:
    """The same with the accelerator's memory split between experts and what sequences keep, as dali.offload has it."""
    simulated, profile = device.simulated, device.profile
    one = Reservation(plan.context, MOST_STEP if simulated else STEP_TOKENS)
    states = sizes.states(plan.dtype, options.in_q8)
    keeps = Keeps(plan.context, states.nbytes(one), states.moving(one))
    if simulated:
        dense = sizes.dense_bytes(plan.dtype, plan.packed and sizes.gguf)
        room = simulated_room(options, profile, sizes.name, dense, keeps)
    else:  # whose kernels need less than is counted here, so that nothing is refused
        room = max(int(profile["gpu_memory"]) - plan.dense - DEVICE_WORK - keeps.moving, keeps.whole)
    split = split_memory(options, room, keeps.whole, _experts(sizes, plan, profile))
    slots = min(split.experts // plan.slot, plan.all_slots)
    there = residents(slots, sizes.moe_layers, sizes.experts)
    cache = options.policies(sizes.moe_layers, sizes.experts, sizes.top_k, there).cache
    if isinstance(cache, WholeLayers):
        cache.check(slots, plan.slot, device.name)
        slots = (sizes.moe_layers - cache.cpu_layers) * sizes.experts
    return replace(
        plan,
        device=device,
        vram=min(split.experts, plan.all_slots * plan.slot),
        resident=slots,
        kept=split.states,
        sequences=split.sequences,
        states=plan.states if simulated else 0,
    )


def _experts(sizes: ModelSizes, plan: Plan, profile: Profile) -> Experts:
    """What competes for an accelerator's memory."""
    costs = cost_model(sizes, plan.layouts, profile, MOST_TOKENS)
    dense = costs.dense_seconds(*dense_size(sizes, plan))
    return Experts(sizes.moe_layers, sizes.experts, sizes.top_k, plan.slot, costs.costs, dense)


def dense_size(sizes: ModelSizes, plan: Plan) -> tuple[int, int, int]:
    """Bytes, weights and kernels of what an accelerator computes beside routed experts, spread over the MoE layers as
    dali.offload has it: unpacked."""
    weights = sizes.computed // sizes.moe_layers
    return weights * ITEM[plan.dtype], weights, KERNELS


def is_taken(sizes: ModelSizes, plan: Plan) -> bool:
    """Whether loading would use the plan's accelerator, or leave all to the CPU, which it then has found to be faster."""
    device = plan.device
    if device is None or device.simulated:
        return True
    there = residents(plan.resident, sizes.moe_layers, sizes.experts)
    slots = there, plan.resident - there * sizes.moe_layers
    costs = cost_model(sizes, plan.layouts, device.profile, MOST_TOKENS)
    worth = weigh(costs, sizes.moe_layers, sizes.experts, sizes.top_k, slots, dense_size(sizes, plan))
    return accelerates(worth, plan.options, device.profile, plan.where == DISK)


def cost_model(
    sizes: ModelSizes, layouts: Sequence[ExpertFormat], profile: Profile, most: int, accelerator: bool = True
) -> CostModel:
    """Times of a model's experts, of up to so many tokens each."""
    weights = sum(layout.weights for layout in layouts) // len(layouts)
    name = layouts[0].name
    shape = ExpertSize(sizes.hidden, sizes.intermediate, 3 if sizes.gated else 2, {name: weights})
    return CostModel(profile, shape, name, most, accelerator=accelerator)


def _check_disk(sizes: ModelSizes, plan: Plan, free: Free) -> None:
    """DaliError where the disk of dali's cache has no room for the experts that loading packs into it."""
    if free.disk is not None and plan.store > free.disk:
        raise DaliError(
            f"{sizes.name} takes {size(plan.store)} on the disk of dali's cache, once its experts are packed as {plan.format}; "
            f"{size(free.disk)} are free there.",
            "Free some, or set DALI_CACHE_DIR to a folder on another disk.",
        )
