"""Every option of `dali.load`, once: what it means, what it may be, and which of them exclude each other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from textwrap import shorten
from typing import Any

from dali import systems
from dali.errors import UsageError, parameter
from dali.hardware import profile as profiles
from dali.hardware.profile import Profile
from dali.policies import Policies, create
from dali.policies.assign import AssignPolicy, layerwise
from dali.policies.registry import DEFAULT
from dali.policies.whole_layers import WholeLayers
from dali.units import parse_size

# Written out, as the formats' own file imports torch, which takes seconds; a test compares the two.
QUANTS = ("auto", "keep", "f32", "f16", "bf16", "w8", "w4", "mxfp4", "q4k", "q6k")
DTYPES = ("auto", "float32", "bfloat16", "float16")
ROPE_SCALINGS = ("linear", "yarn")
CACHE_TYPES = ("auto", "model", "q8", "q8_0")  # the first two are one, as are the last two
DRAFTS = ("ngram",)
CACHE_DISK = 16 << 30  # bytes of a folder for prefixes, unless told
ON_DISK = ("none", "next_gate")  # what can be said of reading experts from disk ahead of a step
ACCELERATOR = ("vram", "profile", "assign", "prefetch", "cache", "n_cpu_moe", "policy", "lossy")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How to load a model, and how to use an accelerator. UsageError, from the constructor, for what cannot be meant.

    Nothing is opened and torch is not imported for it, so a mistake is told at once.
    """

    quant: str = "auto"
    """Format of the experts in memory: "keep" (the file's own values), "auto" (w8 if it fits, else w4; of a GGUF file as "keep"),
    or another of QUANTS."""
    dtype: str = "auto"
    """Of everything but the experts: one of DTYPES."""
    ctx_size: int | None = None
    """Tokens a sequence may have, at most what the model was made for; None for all of that."""
    rope_scaling: str | None = None
    """How rotary positions are stretched to more tokens: one of ROPE_SCALINGS; None as the model's files say."""
    rope_scale: float | None = None
    """How many times more tokens than in training."""
    yarn_orig_ctx: int | None = None
    """Tokens in training, for YaRN; None for what the model's files say."""
    ram: int | str | None = None
    """Host memory that dali may take, bytes or "24GiB"; None for what is free. Experts that it has no room for are read from disk
    when they are wanted."""
    threads: int | None = None
    """CPU threads; None for one a core."""
    cache_ram: int | str | None = None
    """Host memory for the prefix cache, bytes or "4GiB"; None for a quarter of what is free, at most 8 GiB; 0 for none."""
    cache_dir: str | os.PathLike[str] | None = None
    """A folder in which the prefix cache outlives the process; None for none."""
    cache_disk: int | str | None = None
    """What it may have there, bytes or "32GiB"; None for CACHE_DISK."""
    cache_type: str = "auto"
    """What keys and values are kept in, here and by the prefix cache: "auto" or "model" (the model's own type), or "q8" (8 bits
    and a scale for each 32 values; "q8_0" is the same)."""
    draft: str | None = None
    """How tokens are guessed, of which a step then checks several: one of DRAFTS ("ngram": what followed the same words before);
    None for one token a step. Answers are the same, bit for bit."""
    offline: bool = False
    """Never touch the network."""
    device: str = "cpu"
    """ "cpu", "cuda", "cuda:N", or "sim:PROFILE": same results, modelled times. A GPU that makes answers slower by what was
    measured of this machine is not used, unless it is said how experts are to be split."""
    vram: int | str | None = None
    """Accelerator memory for experts, bytes or "8GiB"; None for what the dense weights, and keys and values,
    leave."""
    parallel: int = 1
    """Answers of the whole context that may be under way at once: an accelerator's memory has room for what up to so many keep,
    as far as that makes one alone hardly slower, by modelled time. Without an accelerator all share what is free."""
    profile: str | None = None
    """Name or file of the hardware profile that cuda plans with, instead of the nearest one; a simulated device has its own."""
    assign: str | None = None
    """The assignment policy by name; None for the best known, and likewise the next two."""
    prefetch: str | None = None
    """With experts on disk, as `ram` lets them be, one of ON_DISK: nothing is read ahead of a step, or what the next layer's
    router foresees, where that pays; None for the latter."""
    cache: str | None = None
    n_cpu_moe: int | None = None
    """Keep the experts of that many first layers on the CPU, all others on the accelerator."""
    policy: str | None = None
    """A whole published system by name (dali.systems), in place of the four before."""
    lossy: bool = False
    """With those parts of the system that change the model's answers."""
    seed: int = 0
    """Of the starting residents and the simulator's schedule."""

    def __post_init__(self) -> None:
        self._check_kinds()
        self._check_names()
        self._check_rope()
        self._check_threads()
        if self.parallel < 1:
            raise UsageError(f"{parameter('parallel')} cannot be {self.parallel}.", "Give 1 or more.")
        self._check_exclusions()
        self._check_cache()
        if self.device != "cpu":
            self._check_device()
            self.policies(layers=1, experts=1, top_k=1, capacity=1)
            self.lossy_parts()

    @cached_property
    def ram_bytes(self) -> int | None:
        return _bytes("ram", self.ram)

    @cached_property
    def vram_bytes(self) -> int | None:
        return _bytes("vram", self.vram)

    @cached_property
    def cache_ram_bytes(self) -> int | None:
        return _bytes("cache_ram", self.cache_ram)

    @cached_property
    def cache_disk_bytes(self) -> int:
        given = _bytes("cache_disk", self.cache_disk)
        return CACHE_DISK if given is None else given

    @property
    def in_q8(self) -> bool:
        """Whether keys and values are kept in 8 bits."""
        return self.cache_type in ("q8", "q8_0")

    @property
    def splits(self) -> bool:
        """Whether somebody said how experts are to be split between an accelerator and the CPU: then nothing else decides it."""
        said = (self.assign, self.prefetch, self.cache, self.n_cpu_moe, self.policy)
        return any(part is not None for part in said)

    @property
    def device_kind(self) -> str:
        """ "cpu", "cuda" or "sim"."""
        return self.device.partition(":")[0]

    def _check_kinds(self) -> None:
        """UsageError for values of another kind, as Python's users may give."""
        _expect(
            int | None,
            "a whole number",
            threads=self.threads,
            ctx_size=self.ctx_size,
            n_cpu_moe=self.n_cpu_moe,
            yarn_orig_ctx=self.yarn_orig_ctx,
        )
        _expect(int | float | None, "a number", rope_scale=self.rope_scale)
        _expect(int, "a whole number", seed=self.seed, parallel=self.parallel)
        _expect(
            str,
            "a name, as text",
            device=self.device,
            quant=self.quant,
            dtype=self.dtype,
            cache_type=self.cache_type,
        )
        names = ("profile", "draft", "rope_scaling", "assign", "prefetch", "cache", "policy")
        _expect(str | None, "a name, as text", **{name: getattr(self, name) for name in names})
        for name in ("offline", "lossy"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(
                    f"{parameter(name)} cannot be {getattr(self, name)!r:.60}.", "Give True or False."
                )
        _ = self.ram_bytes, self.vram_bytes, self.cache_ram_bytes, self.cache_disk_bytes
        if not isinstance(self.cache_dir, str | os.PathLike | None) or self.cache_dir == "":
            raise UsageError(
                f"{parameter('cache_dir')} cannot be {shorten(repr(self.cache_dir), 60)}.",
                "Give a folder's path.",
            )

    def _check_names(self) -> None:
        if self.quant not in QUANTS:
            raise UsageError(f"Unknown quantization {self.quant!r}.", f"Choose one of {', '.join(QUANTS)}.")
        if self.dtype not in DTYPES:
            raise UsageError(f"Unknown dtype {self.dtype!r}.", f"Choose one of {', '.join(DTYPES)}.")
        if self.cache_type not in CACHE_TYPES:
            raise UsageError(
                f"Unknown type of keys and values {self.cache_type!r}.",
                f"Choose one of {', '.join(CACHE_TYPES)}.",
            )
        if self.draft not in (None, *DRAFTS):
            raise UsageError(f"Unknown way to draft {self.draft!r}.", f"Choose one of {', '.join(DRAFTS)}.")
        if self.rope_scaling not in (None, *ROPE_SCALINGS):
            raise UsageError(
                f"Unknown rotary scaling {self.rope_scaling!r}.", f"Choose one of {', '.join(ROPE_SCALINGS)}."
            )

    def _check_rope(self) -> None:
        if self.rope_scale is not None and not 1 <= self.rope_scale <= 2**20:
            raise UsageError(
                f"{parameter('rope_scale')} cannot be {self.rope_scale}.",
                "Give a number from 1, such as 4 for four times the tokens.",
            )
        if self.yarn_orig_ctx is not None and self.yarn_orig_ctx < 1:
            raise UsageError(
                f"{parameter('yarn_orig_ctx')} cannot be {self.yarn_orig_ctx}.", "Give a whole number from 1."
            )

    def _check_threads(self) -> None:
        cores = os.cpu_count() or 1
        if self.threads is not None and not 1 <= self.threads <= 4 * cores:
            raise UsageError(
                f"{parameter('threads')} {self.threads} is out of range: with more than 4 a core they only wait "
                f"for each other, and there are {cores} cores here.",
                f"Give 1 to {4 * cores}, or leave it out.",
            )

    def _check_exclusions(self) -> None:
        given = {
            name: getattr(self, name) for name in ACCELERATOR if getattr(self, name) not in (None, False)
        }
        for part in ("assign", "prefetch", "cache", "n_cpu_moe") if self.policy is not None else ():
            if part in given:
                raise UsageError(
                    f"{parameter('policy')} {self.policy} is a whole system and says itself what {parameter(part)} would.",
                    "Leave one of them out.",
                )
        for part in ("prefetch", "cache") if self.n_cpu_moe is not None else ():
            if part in given:
                raise UsageError(
                    f"{parameter('n_cpu_moe')} {self.n_cpu_moe} leaves whole layers where they are, so nothing "
                    f"would follow {parameter(part)} {given[part]}.",
                    "Leave one of them out.",
                )
        if self.device == "cpu" and self.ram is not None and "prefetch" in given:
            self._check_prefetch_on_disk(given.pop("prefetch"))
        if self.device == "cpu" and given and given != {"assign": "cpu"}:
            first = next(iter(given))
            disk = f" (or {parameter('ram')}, less than the experts take)" if first == "prefetch" else ""
            raise UsageError(
                f"{parameter(first)} is about an accelerator, and the device is cpu.",
                f"Give {parameter('device')} too{disk}, or leave it out.",
            )
        if self.draft is not None and self.lossy:
            raise UsageError(
                f"{parameter('draft')} {self.draft} leaves answers as they are, and {parameter('lossy')} lets them depend on "
                "what else a step computes.",
                "Leave one of them out.",
            )

    def _check_prefetch_on_disk(self, name: str) -> None:
        if name not in ON_DISK:
            raise UsageError(
                f"{parameter('prefetch')} {name} is not for experts on disk, which the next layer's router foresees.",
                f"Give one of {', '.join(ON_DISK)}, or leave it out.",
            )

    def _check_cache(self) -> None:
        if self.in_q8 and self.device_kind == "cuda":
            raise UsageError(
                f"{parameter('cache_type')} {self.cache_type} is not for {self.device}: dali's GPU kernels attend to keys and "
                "values of the model's type alone.",
                f"Leave it out, or use {parameter('device')} cpu.",
            )
        if self.in_q8 and self.dtype == "float16":
            raise UsageError(
                f"{parameter('cache_type')} {self.cache_type} is not for {parameter('dtype')} float16, in which torch computes "
                "attention.",
                f"Give {parameter('dtype')} float32 or bfloat16, or leave one of them out.",
            )
        if self.cache_disk is not None and self.cache_dir is None:
            raise UsageError(
                f"{parameter('cache_disk')} {self.cache_disk} is about a folder, and none is named.",
                f"Give {parameter('cache_dir')} too, or leave it out.",
            )
        if self.cache_dir is not None and self.lossy:
            raise UsageError(
                f"{parameter('lossy')} changes what is kept of a prompt, so that {parameter('cache_dir')} cannot tell it "
                "from what others would compute.",
                "Leave one of them out.",
            )

    def _check_device(self) -> None:
        kind, _, rest = self.device.partition(":")
        known = (kind == "sim" and rest) or (kind == "cuda" and (self.device == "cuda" or rest.isdecimal()))
        if not known:
            raise UsageError(
                f"Unknown device {self.device!r}.",
                "Use cpu, cuda, cuda:N, or sim:PROFILE for a simulated accelerator.",
            )
        self.planning_profile()

    def planning_profile(self) -> Profile | None:
        """The hardware profile whose times an accelerator's plans are made with; None where none was named for a GPU."""
        own = self.device.partition(":")[2] if self.device_kind == "sim" else None
        chosen = self.profile or own
        if chosen is None:
            return None
        profile = profiles.load(chosen)
        if not profile.has_accelerator:
            raise UsageError(
                f"The hardware profile {chosen} is of a machine without an accelerator.",
                f"Name one of {', '.join(profiles.known())}, or measure a machine that has one: `dali bench hw`.",
            )
        if own is not None and chosen != own:
            raise UsageError(
                f"{parameter('profile')} {chosen} is not the one of {self.device}, which it plans with.",
                f"Leave it out, or give {parameter('device')} sim:{chosen}.",
            )
        return profile

    def policies(self, layers: int, experts: int, top_k: int, capacity: int) -> Policies:
        """Fresh policies for `capacity` residents a layer."""
        if self.policy is not None:
            return systems.get(self.policy).create(layers, experts, top_k, capacity, self.seed)
        name = self.cache or DEFAULT["cache"]
        cache = create("cache", name, layers=layers, experts=experts, capacity=capacity, seed=self.seed)
        assign = self._assignment()
        if isinstance(
            assign, layerwise.Policy
        ):  # with whole layers there, no cache policy has anything to do
            cache = WholeLayers(layers, experts, assign.cpu_layers)
        return Policies(assign, create("prefetch", self.prefetch or DEFAULT["prefetch"]), cache)

    def _assignment(self) -> AssignPolicy:
        """The assignment policy; `n_cpu_moe` belongs to layerwise alone, and names it."""
        name = self.assign or DEFAULT["assign"]
        if self.n_cpu_moe is not None and name in (DEFAULT["assign"], "layerwise"):
            return create("assign", "layerwise", cpu_layers=self.n_cpu_moe)
        if self.n_cpu_moe is not None:
            raise UsageError(
                f"{parameter('n_cpu_moe')} and {parameter('assign')} {name} exclude each other.",
                "Leave one of them out.",
            )
        return create("assign", name)

    def lossy_parts(self) -> systems.LossyParts | None:
        """What is to be lossy; UsageError where there is nothing to choose from."""
        if not self.lossy:
            return None
        having = f"one of {', '.join(systems.names(lossy=True))}"
        if self.policy is None:
            raise UsageError(
                f"{parameter('lossy')} turns on the lossy parts of a system, and none is named.",
                f"Give {parameter('policy')} {having}.",
            )
        system = systems.get(self.policy)
        if system.parts is None:
            raise UsageError(
                f"{system.title} has no lossy parts.", f"Leave out {parameter('lossy')}, or choose {having}."
            )
        return system.parts


def _expect(kind: Any, meant: str, **given: object) -> None:
    """UsageError for a value of another kind; True and False are no numbers."""
    for name, value in given.items():
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UsageError(f"{parameter(name)} cannot be {shorten(repr(value), 60)}.", f"Give {meant}.")


def _bytes(name: str, given: object) -> int | None:
    nbytes = parse_size(given) if isinstance(given, str) else given
    if nbytes is None:
        return None
    if not isinstance(nbytes, int) or isinstance(nbytes, bool) or nbytes < 0:
        raise UsageError(
            f"{parameter(name)} cannot be {given!r}.", "Give bytes, 0 or more, or a size like 8GiB."
        )
    return nbytes
