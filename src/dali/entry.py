"""The two ways in: `dali.load`, and `dali.attach` for models that transformers has loaded already.

This file is not called load.py, as `dali.load` is the function: a module of that name would take its place once imported.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch

from dali import fused
from dali.doctor.before import before_download
from dali.engine.draft.opening import open_drafts
from dali.engine.loop import check_process
from dali.engine.prefix.folder import prepare_folder
from dali.engine.prefix.opening import open_prefixes
from dali.errors import DaliError, UsageError, parameter
from dali.fused.dense import LINEARS
from dali.fused.model import DecodingModel
from dali.hooks import seam
from dali.hooks.attention import keeps_tokens
from dali.hooks.moe_layer import FLOATS, MoELayer
from dali.kernels import native
from dali.kernels.formats import FORMATS, Format, get_format
from dali.llm import LLM
from dali.loading.budget import choose_layout
from dali.loading.loaded import conversion_note
from dali.loading.locate import locate
from dali.loading.room import HEADROOM, nothing_to_fetch
from dali.loading.source import ModelSource, open_source
from dali.offload.build import accelerate, check_device
from dali.offload.ram import share_beside, share_out
from dali.options import QUANTS, LoadOptions
from dali.progress import Meter, silent
from dali.store.arena import Arena
from dali.store.expert_pool import ExpertPool
from dali.store.gguf.pack import Losses
from dali.telemetry import Telemetry

_loaded_in: int | None = None  # the process whose threads torch and the kernels have


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    meter: Meter = silent,
    notify: Callable[[str], None] = lambda message: None,
    **options: Any,
) -> LLM:
    """Load a Mixture-of-Experts model; its routed experts are packed, held and computed by dali.

    model: a directory, a GGUF file, org/name, org/name:QUANT, or None for the model that ships inside. options: fields of
    `dali.LoadOptions` by name, such as quant="w4", ctx_size=8192, ram="24GiB", device="sim:paper", vram="8GiB"; it says what each
    means. meter, notify: are told of progress and of what is worth knowing.
    """
    if not isinstance(model, str | os.PathLike | None):
        raise UsageError(
            f"model cannot be {model!r:.60}.", "Give a path or org/name; dali.attach takes models."
        )
    unknown = sorted(options.keys() - LoadOptions.__dataclass_fields__.keys())
    if unknown:
        known = ", ".join(LoadOptions.__dataclass_fields__)
        raise UsageError(f"dali.load has no option {unknown[0]!r}.", f"Its options: {known}.")
    chosen = LoadOptions(**options)
    prepare(chosen, notify)
    found = locate(model, chosen.offline, before_download(chosen, notify))
    return load_source(open_source(found), chosen, meter, notify)


def _signature() -> inspect.Signature:
    """What `help` and editors show of `load`: the options by name, which stand in LoadOptions alone."""
    own = inspect.signature(load).parameters
    fields = inspect.signature(LoadOptions).parameters.values()
    return inspect.Signature([own["model"], *fields, own["meter"], own["notify"]], return_annotation="LLM")


load.__signature__ = _signature()  # type: ignore[attr-defined]


def prepare(options: LoadOptions, notify: Callable[[str], None]) -> None:
    """Refuse what `options` ask for and this machine lacks, and set threads, before any file is opened."""
    global _loaded_in
    _loaded_in = _loaded_in or os.getpid()
    check_process(_loaded_in)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if native.enabled():
        native.set_threads(options.threads or torch.get_num_threads())
    check_device(options)
    if options.in_q8 and not native.enabled():
        raise DaliError(
            f"{parameter('cache_type')} {options.cache_type} needs dali's compiled kernels, which are missing or turned off.",
            f"Install a C++ compiler and reinstall dali, or leave {parameter('cache_type')} out.",
        )
    if options.cache_dir is not None:
        prepare_folder(options.cache_dir, options.cache_disk_bytes)
    if not native.AVAILABLE:
        notify(
            "dali was built without its compiled kernels: torch computes, several times slower. "
            "Install a C++ compiler and reinstall dali."
        )


def load_source(
    source: ModelSource, options: LoadOptions, meter: Meter, notify: Callable[[str], None]
) -> LLM:
    """As `load`, for a model that was found and opened; `prepare` was called."""
    notify = _once(
        notify
    )  # this machine's profile is asked for by several, and each says what is wrong with it
    compiled = native.enabled()
    llm = LLM(source.load(options, compiled, meter, notify))
    if llm.controls:
        notify(
            f"{', '.join(llm.controls)}: text in the model's files, but used by its chat template as control tokens, "
            "so dali takes them for such."
        )
    if options.in_q8 and not keeps_tokens(llm.model):
        raise DaliError(
            f"{llm.name} has no layer that keeps keys and values, so nothing would follow {parameter('cache_type')} "
            f"{options.cache_type}.",
            "Leave it out.",
        )
    llm.engine.in_q8 = options.in_q8
    linears = get_format(LINEARS) if llm.layout.format.quantized else None
    _fuse(llm, linears, options, compiled, meter, notify)
    prefix_ram = options.cache_ram_bytes
    if llm.loaded.disk is not None:  # now that all else is in memory
        device = None if llm.executor is None else llm.executor.device
        prefix_ram = share_out(llm.loaded, llm.engine, options, notify, device)
        llm.ctx_size, llm.expert_bytes = llm.loaded.ctx_size, llm.loaded.expert_bytes
    elif options.device == "cpu" and options.prefetch is not None:
        raise nothing_to_fetch(options.prefetch, llm.name)
    elif options.ram_bytes is not None and llm.accelerated is None:
        prefix_ram = share_beside(llm.loaded, llm.engine, options, notify)
        llm.ctx_size = llm.loaded.ctx_size
    if options.draft is not None:
        llm.engine.drafts = open_drafts(llm.engine, llm.name, llm.ctx_size, llm.telemetry)
    llm.engine.prefixes = open_prefixes(llm.loaded, options, notify, prefix_ram)
    return llm


def _once(notify: Callable[[str], None]) -> Callable[[str], None]:
    """`notify`, but for what it was told before."""
    said: set[str] = set()

    def tell(message: str) -> None:
        if message not in said:
            said.add(message)
            notify(message)

    return tell


def _fuse(
    llm: LLM,
    linears: Format | None,
    options: LoadOptions,
    compiled: bool,
    meter: Meter,
    notify: Callable[[str], None],
) -> None:
    """Let the model compute where it shall, by the fastest way that gives its bits."""
    if options.device_kind == "cuda":  # whose kernels go by what the CPU's have told of the model
        decoder = _join(llm, linears, notify)
        experts = accelerate(llm.loaded, llm.engine, options, meter, notify, decoder=decoder)
        if experts is None:  # the CPU alone is faster
            llm.engine.decoder = decoder
        else:
            llm.accelerate(experts)
        return
    if options.device != "cpu":
        ram = options.ram_bytes
        room = None if ram is None else ram - llm.expert_bytes - llm.dense_bytes - HEADROOM
        experts = accelerate(llm.loaded, llm.engine, options, meter, notify, room=room)
        assert experts is not None  # a simulated device is always used
        llm.accelerate(experts)
    if compiled:  # a simulated accelerator's dense work is the CPU's, too
        llm.engine.decoder = _join(llm, linears, notify)


def _join(llm: LLM, linears: Format | None, notify: Callable[[str], None]) -> DecodingModel | None:
    """fused.fuse, which says what it loses of the file's values."""
    losses = Losses()
    decoder = fused.fuse(llm.model, linears, losses)
    for conversion, error in losses.relative().items():
        llm.loaded.converted_linears[conversion] = error
        notify(conversion_note("Linears", conversion, error))
    return decoder


def check_attachable(model: torch.nn.Module, name: str) -> None:
    """DaliError for a model whose weights dali cannot pack where they are, before anything is done to it."""
    for path, weight in model.named_parameters():
        if weight.is_meta:
            raise DaliError(
                f"{path} of {name} is not in memory: it was offloaded, or never loaded.",
                "Load the model whole (without device_map), or use dali.load.",
            )
    for path, module in seam.experts_modules(model).items():
        for weight in module.parameters():
            if weight.dtype not in FLOATS:
                raise DaliError(
                    f"{path} of {name} is in {str(weight.dtype).removeprefix('torch.')}, which dali does not pack.",
                    "Load the model in float32, bfloat16 or float16.",
                )


def attach(model: Any, *, quant: str = "w8") -> Any:
    """Give a loaded transformers model dali's experts, packed in `quant`, and return it; `model.generate` keeps working.

    A layer's own parameters are freed as soon as it is packed. The model cannot be trained, copied or saved from then on.
    DaliError if the model has no routed experts, they are not floats in memory, or `quant` cannot hold one of them.
    """
    formats = [name for name in QUANTS if name in FORMATS]
    if quant not in formats:
        raise UsageError(f"Unknown quantization {quant!r}.", f"Choose one of {', '.join(formats)}.")
    if not isinstance(model, torch.nn.Module):
        raise UsageError(
            f"model cannot be {model!r:.60}.", "Give a loaded transformers model; dali.load takes names."
        )
    name = type(model).__name__
    check_attachable(model, name)
    modules = seam.describe_model(model, name)
    held = list(seam.experts_modules(model).values())
    freed = sum(parameter.nbytes for module in held for parameter in module.parameters())
    layout = choose_layout(modules, quant, 0, None, name, freed)
    arena = Arena(sum(module.experts for module in modules), layout.record_bytes)
    records = arena.by_layer(len(modules))
    for layer, (info, module) in enumerate(zip(modules, held, strict=True)):
        names = info.parameter_names
        for expert, record in enumerate(records[layer]):
            parts = [getattr(module, name).detach()[expert] for name in names]
            try:
                layout.pack(info.canonical(*parts), record)
            except DaliError as error:
                raise DaliError(
                    f"Expert {expert} of MoE layer {layer}: {error.problem} The model has lost the layers before.",
                    f"{error.fix} Load the model again first.",
                ) from error
        for name in names:
            module._parameters[name] = None
    telemetry = Telemetry()
    pool = ExpertPool([layout] * len(modules), records)
    seam.install(model, [MoELayer(index, pool, telemetry) for index in range(pool.layers)])
    return model
