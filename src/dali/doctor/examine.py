"""A model examined: its sizes, the ways in which it could run here, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from dali.doctor import checkpoint, gguf
from dali.doctor.here import Here
from dali.doctor.outline import GgufOutline, Outline, read_outline
from dali.doctor.plan import DISK, Device, Plan
from dali.doctor.remote import Outlined, fetch_outline
from dali.doctor.sizes import CannotTell, ModelSizes
from dali.doctor.speed import predict
from dali.doctor.verdict import Verdict, of_refusal, of_speed
from dali.doctor.ways import Way, plan_of, reads, ways_of
from dali.errors import DaliError
from dali.hardware import own
from dali.hardware.profile import Profile
from dali.loading.locate import Remote
from dali.loading.room import HEADROOM, most_tokens
from dali.options import LoadOptions
from dali.policies.registry import DEFAULT
from dali.store.cache import store_path
from dali.units import size

AHEAD = "Whether reading ahead pays is found out by steps: these are speeds without it. {} keeps it off."
MORE = 2**30  # bytes, of what one more GiB would bring


class Choice(NamedTuple):
    """Something of the plan, what it is, and who said so."""

    what: str
    value: str
    origin: str


@dataclass(frozen=True)
class Examination:
    """`ways`: the one that `dali run` takes comes first; none where it would refuse. `more`: what one more GiB would bring."""

    name: str
    sizes: ModelSizes | None
    ways: tuple[Way, ...]
    verdict: Verdict
    choices: tuple[Choice, ...] = ()
    notes: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    basis: str = ""
    refusal: DaliError | None = None


def read_remote(remote: Remote, folder: Path) -> tuple[Outline, Outlined]:
    """The outline of a model on the hub, by way of `folder`, which must be empty. Errors speak of the model by its name."""
    there = fetch_outline(remote, folder)
    try:
        return replace(read_outline(there.path), name=str(remote)), there
    except DaliError as error:
        raise error.about(f"{folder}", remote.name) from None


def is_packed(path: Path) -> bool:
    """Whether experts of a model that lies there were packed before, so that they take no more of the disk."""
    return any(store_path(path, "any").parent.glob("*.safetensors"))


def sizes_of(outline: Outline) -> ModelSizes:
    """DaliError for a model that loading would refuse, as far as headers tell; CannotTell for what they do not tell."""
    try:
        return gguf.sizes_of(outline) if isinstance(outline, GgufOutline) else checkpoint.sizes_of(outline)
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, StopIteration) as error:
        raise CannotTell(
            f"Nothing can be told from the headers of {outline.name} ({type(error).__name__}: {error!s:.80}).",
            "Load it with `dali run`, which asks transformers.",
        ) from error


def examine(
    outline: Outline,
    options: LoadOptions,
    here: Here,
    device: Device | None = None,
    origins: Mapping[str, str] | None = None,
) -> Examination:
    """What `options` would come to. UsageError for what cannot be meant; all else that loading would refuse is the verdict NO."""
    sizes: ModelSizes | None = None
    try:
        sizes = sizes_of(outline)
        if is_packed(outline.path):
            here = replace(here, free=here.free._replace(disk=None))
        ways = ways_of(sizes, options, here, device)
    except DaliError as error:
        if error.exit_code == 2:
            raise
        return Examination(outline.name, sizes, (), of_refusal(error), refusal=error)
    taken = ways[0]
    return Examination(
        outline.name,
        sizes,
        tuple(ways),
        of_speed(taken.prediction),
        tuple(_choices(sizes, taken, options, here, origins or {})),
        tuple(_notes(sizes, taken.plan, options, here)),
        tuple(_more(sizes, options, here, device, taken)),
        _basis(here, device),
    )


def _basis(here: Here, device: Device | None) -> str:
    """What speeds are told by."""
    if device is not None and device.simulated:
        return own.origin(device.profile)
    return own.origin(here.profile) if here.measured else "a quick look at memory, and published figures"


def _choices(
    sizes: ModelSizes, way: Way, options: LoadOptions, here: Here, origins: Mapping[str, str]
) -> list[Choice]:
    plan = way.plan

    def origin(key: str, otherwise: str) -> str:
        return origins.get(key, otherwise)

    free = f"{size(here.free.memory)} are free"
    place = "in RAM"
    if plan.where == DISK:
        part = f"{plan.slots} of {plan.all_slots} experts in RAM, the others on disk"
        place = part if plan.slots < plan.all_slots else "in RAM, read from disk as they are wanted"
    if plan.device is not None:
        place += f", {plan.resident} of {plan.all_slots} on {plan.device.name}, too"
    packed = "linears as the file has them" if sizes.gguf else "linears in w8"
    shared = []
    used, why = options.device, origin("device", "default")
    if plan.device is None and options.device != "cpu":
        used, why = "cpu", f"modelled: faster than {options.device}"
    if plan.device is not None:
        contexts = "a context" if plan.sequences == 1 else f"{plan.sequences} contexts"
        value = f"{size(plan.vram)} for experts, {size(plan.kept)} for {contexts}"
        shared = [Choice("its memory", value, _shared_by(options, origins))]
        if way.policy:
            shared.append(Choice("its policy", way.policy, _decided_by(options, origins)))
    shortened = _budgeted(plan) and options.ctx_size is None and plan.context < sizes.context
    placing = {"ram": plan.device is None or plan.where == DISK, "vram": plan.device is not None}
    placed = [origins[key] for key, places in placing.items() if places and key in origins]
    return [
        Choice("experts", plan.format, origin("quant", "default: auto")),
        Choice(
            "everything else",
            f"{packed} beside {plan.dtype}" if plan.packed else plan.dtype,
            origin("dtype", "model"),
        ),
        Choice(
            "context",
            f"{plan.context} tokens",
            origin("ctx_size", "measured: the room there is" if shortened else "model"),
        ),
        Choice("experts are", place, ", ".join(placed) or f"measured: {free}"),
        *(_choices_of_reading(here.profile) if reads(plan) else ()),
        Choice("memory", f"at most {size(plan.allowed)}", origin("ram", f"measured: {free}")),
        Choice("device", used, why),
        *shared,
        Choice("threads", str(options.threads or here.cores), origin("threads", "default: all cores")),
    ]


def _budgeted(plan: Plan) -> bool:
    """Whether keys and values have their share of a budget, and no more."""
    return plan.where == DISK or (plan.device is None and plan.options.ram_bytes is not None)


def _shared_by(options: LoadOptions, origins: Mapping[str, str]) -> str:
    """What has split an accelerator's memory between experts and sequences."""
    for name in ("vram", "n_cpu_moe"):
        if getattr(options, name) is not None:
            return origins.get(name, name)
    return (
        "modelled time" if options.parallel > 1 else origins.get("parallel", "default: one answer at a time")
    )


def _decided_by(options: LoadOptions, origins: Mapping[str, str]) -> str:
    """Who has said what an accelerator computes."""
    for name, key in (("policy", "system"), ("n_cpu_moe", "n_cpu_moe"), ("assign", "assign")):
        if getattr(options, name) is not None:
            return origins.get(key, name)
    return f"default: {DEFAULT['assign']}"


def _choices_of_reading(profile: Profile) -> list[Choice]:
    how = "through the page cache" if profile.reads_plainly else "past the page cache"
    share = profile.plain_share
    why = "default: plain reading was not measured"
    if share is not None:
        why = f"measured: plain reading is {share:.2f} times as fast"
    return [Choice("experts are read", how, why)]


def _notes(sizes: ModelSizes, plan: Plan, options: LoadOptions, here: Here) -> list[str]:
    if plan.where == DISK:
        tried = plan.device is None and plan.slots < plan.all_slots and options.prefetch is None
        off = "`--prefetch none`" if options.ram else "`--ram SIZE --prefetch none`"
        return [AHEAD.format(off)] if tried else []
    if _budgeted(plan):
        return []
    room = plan.allowed - plan.dense - plan.experts - HEADROOM // 2
    if plan.states <= room:
        return []
    tokens = most_tokens(
        plan.context, max(room, 0), lambda n: sizes.state_bytes(n, plan.dtype, options.in_q8)
    )
    return [
        f"The keys and values of all {plan.context} tokens would take {size(plan.states)}, which are not free: there is room for "
        f"about {tokens}. To be sure: `dali run -c {max(tokens, 2)}`."
    ]


def _more(sizes: ModelSizes, options: LoadOptions, here: Here, device: Device | None, way: Way) -> list[str]:
    """What one more GiB of RAM, and of accelerator memory, would bring."""
    found = []
    now = way.prediction.decode.expected
    if way.plan.where == DISK and way.plan.slots < way.plan.all_slots:
        free = here.free._replace(memory=here.free.memory + MORE)
        given = options if options.ram_bytes is None else replace(options, ram=options.ram_bytes + MORE)
        found.append(("RAM", free, given, device))
    if way.plan.device is not None and way.plan.resident < way.plan.all_slots and options.n_cpu_moe is None:
        assert device is not None
        given = options if options.vram_bytes is None else replace(options, vram=options.vram_bytes + MORE)
        found.append(("accelerator memory", here.free, given, _larger(device)))
    told = []
    for what, free, given, on in found:
        try:
            plan = plan_of(sizes, given, free, here, on)
        except DaliError:
            continue
        speed = predict(sizes, here.profile, plan).decode.expected
        told.append(f"One more GiB of {what} would bring {100 * (speed / now - 1):+.0f} % of decoding speed.")
    return told


def _larger(device: Device) -> Device:
    memory = device.profile.figures["gpu_memory"]
    figures = {**device.profile.figures, "gpu_memory": replace(memory, value=memory.value + MORE)}
    return device._replace(profile=replace(device.profile, figures=figures))


class Quant(NamedTuple):
    """A quantization of a repository: its files' bytes, and what they would come to."""

    name: str
    nbytes: int
    verdict: str
    speed: float  # tokens a second of decoding; 0 for what does not fit


def of_quants(
    quants: Mapping[str, int], found: Examination, options: LoadOptions, here: Here, device: Device | None
) -> list[Quant]:
    """The quantizations of a repository, the largest first, by their sizes in proportion to the one that was examined."""
    sizes, rows = found.sizes, []
    for name, nbytes in sorted(quants.items(), key=lambda item: -item[1]) if sizes is not None else ():
        assert sizes is not None
        other = sizes.requantized(nbytes)
        try:
            plan = plan_of(other, options, here.free, here, device)
        except DaliError:
            rows.append(Quant(name, nbytes, "NO", 0.0))
            continue
        prediction = predict(other, here.profile, plan)
        rows.append(Quant(name, nbytes, of_speed(prediction).word, prediction.decode.expected))
    return rows


def best_of(rows: Sequence[Quant]) -> Quant | None:
    """The largest one of the best verdict: more bits lose less."""
    order = ("FAST", "USABLE", "SLOW")
    fits = [row for row in rows if row.verdict in order]
    return min(fits, key=lambda row: (order.index(row.verdict), -row.nbytes)) if fits else None
