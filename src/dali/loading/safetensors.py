"""Loading a model without its experts, and giving it dali's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.utils import logging as transformers_logging

from dali.errors import DaliError, UsageError, reason
from dali.hardware.memory import available_ram
from dali.hooks import attention, seam
from dali.hooks.moe_layer import MoELayer
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import FORMATS, get_format
from dali.loading.locate import BUNDLED
from dali.progress import Meter
from dali.store.cache import store_path
from dali.store.checkpoint import Checkpoint, CheckpointExperts, ExpertsModule
from dali.store.packed.builder import ensure_store
from dali.store.packed.header import StoreHeader
from dali.store.packed.reader import StoreReader
from dali.telemetry import Telemetry
from dali.units import enough, size

QUANTS = ("auto", *FORMATS)
DTYPES = ("auto", "float32", "bfloat16", "float16")
HEADROOM = 2**30  # bytes left to activations, keys and values, and Python, when --quant auto decides
ATTENTION_TYPES = {"full_attention", "sliding_attention"}


@dataclass
class LoadedModel:
    """A dense transformers model whose experts modules run dali's layers."""

    name: str
    fingerprint: str  # of the checkpoint
    model: Any
    tokenizer: Any
    layouts: list[ExpertLayout]  # of each MoE layer's records
    records: list[list[Tensor]]  # [layer][expert], packed, in RAM
    telemetry: Telemetry
    ctx_size: int  # tokens a sequence may have
    converted: dict[str, float] = field(default_factory=dict)  # "Q6_K to w8" -> relative L2 error, measured
    system: str | None = None  # whose policies run, where one was named
    lossy: dict[str, Any] = field(
        default_factory=dict
    )  # its lossy "parts", and what they have done; none: all are off

    @property
    def layout(self) -> ExpertLayout:
        """The layout of the largest records, which fit any layer's."""
        return max(self.layouts, key=lambda layout: layout.record_bytes)

    @property
    def format_name(self) -> str:
        """What the experts are packed in, for people."""
        return describe_layouts(self.layouts)

    @property
    def expert_bytes(self) -> int:
        """Bytes of RAM the experts take."""
        return sum(record.nbytes for layer in self.records for record in layer)


def describe_layouts(layouts: Sequence[ExpertLayout]) -> str:
    """The formats of all layers, for people: "w8", or "q4k, q4k (down w8)" where layers differ."""
    return ", ".join(dict.fromkeys(layout.format_name for layout in layouts))


def check_choices(quant: str, dtype: str) -> None:
    """UsageError for an unknown `quant` or `dtype`."""
    if quant not in QUANTS:
        raise UsageError(f"Unknown quantization {quant!r}.", f"Choose one of {', '.join(QUANTS)}.")
    if dtype not in DTYPES:
        raise UsageError(f"Unknown dtype {dtype!r}.", f"Choose one of {', '.join(DTYPES)}.")


def load_model(
    directory: Path,
    quant: str,
    dtype: str,
    ctx_size: int | None,
    ram: int | None,
    meter: Meter,
    notify: Callable[[str], None],
    compiled: bool = False,
) -> LoadedModel:
    """Load `directory` for the engine. `ctx_size`: tokens a sequence may have, None for all the model can; `ram`: bytes of host
    memory to plan with, None for what is free now. compiled: the dense part is for the CPU's compiled kernels.

    UsageError for an unknown `quant` or `dtype` or a `ctx_size` out of range; DaliError for a model that cannot be had, read,
    run or held.
    """
    check_choices(quant, dtype)
    config = read_config(directory)
    skeleton = build_skeleton(config, directory)
    ctx_size = choose_context(config, ctx_size, directory.name)
    modules = seam.describe_model(skeleton, str(directory))
    check_attention(skeleton)
    tokenizer = load_tokenizer(directory)
    checkpoint = Checkpoint(directory)
    source = CheckpointExperts(checkpoint, modules, get_model_conversion_mapping(skeleton), skeleton)
    if getattr(config, "dtype", None) is None and dtype == "auto":
        dtype = "float32"
    if (
        dtype == "auto" and config.dtype == torch.float16 and compiled
    ):  # which they lack; float32 holds the same values
        dtype = "float32"
    target = config.dtype if dtype == "auto" else getattr(torch, dtype)
    dense_bytes = count_dense_bytes(skeleton, target)
    what = directory.name if directory.parent == BUNDLED else directory
    layout = choose_layout(modules, quant, dense_bytes, ram, what)

    # Experts first: while they are packed, no dense weights are in memory yet.
    header = StoreHeader(directory.name, checkpoint.fingerprint, len(modules), modules[0].experts, layout)
    path = store_path(directory, layout.format.name)
    nbytes = header.records * header.record_bytes
    ensure_store(
        path, header, source, lambda: meter(f"Packing experts to {layout.format.name}", nbytes), notify
    )
    source.checkpoint.close()
    model = load_dense(directory, config, target)
    with StoreReader(path) as reader:
        arena = reader.read_all(meter("Loading experts", nbytes))
    telemetry = Telemetry()
    records = arena.by_layer(len(modules))
    seam.install(model, [MoELayer(i, layout, layer, telemetry) for i, layer in enumerate(records)])
    layouts = [layout] * len(modules)
    return LoadedModel(
        directory.name, checkpoint.fingerprint, model, tokenizer, layouts, records, telemetry, ctx_size
    )


def read_config(directory: Path) -> Any:
    """The model's transformers configuration. DaliError for what transformers or dali cannot run."""
    path = directory / "config.json"
    try:
        raw = json.loads(path.read_bytes())
        with quiet_transformers():
            config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        quantization = raw.get("quantization_config") or {}
        method = quantization.get("quant_method", "an unknown method") if quantization else None
    except Exception as error:  # transformers stumbles over a wrong value wherever it first uses it
        raise DaliError(
            f"Cannot read {path} ({reason(error)}).",
            "It must be the config.json of a model that transformers knows.",
        ) from error
    if method == "mxfp4":
        del config.quantization_config  # its experts are dali's; its dense weights are plain bfloat16
    elif method is not None:
        raise DaliError(
            f"{directory} is quantized with {method}, which dali cannot read.",
            "Use the unquantized model; dali quantizes its experts itself (--quant w8 or w4).",
        )
    return config


def build_skeleton(config: Any, path: Path) -> nn.Module:
    """The model on meta, experts included: shapes without memory. `path`: where `config` is from."""
    cls = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if cls is None:
        raise DaliError(
            f"{path} is a {config.model_type} model, which transformers has no text generation for.",
            "dali runs causal language models.",
        )
    try:
        with quiet_transformers(), torch.device("meta"):
            model: nn.Module = cls(config)
    except Exception as error:  # as in read_config
        raise DaliError(
            f"transformers cannot build a {cls.__name__} from {path} ({reason(error)}).",
            "Download it again; if it is as published, a newer transformers may be needed.",
        ) from error
    return model


def choose_context(config: Any, asked: int | None, name: str) -> int:
    """Tokens a sequence may have: `asked`, or all that `config` says the model can. UsageError: it cannot."""
    most: int = config.max_position_embeddings
    if asked is not None and not 1 < asked <= most:
        raise UsageError(f"The context size {asked} is out of range.", f"{name} takes 2 to {most} tokens.")
    return most if asked is None else asked


def check_attention(model: Any) -> None:
    """The engine keeps keys and values a sequence; layers with another kind of state cannot be stepped so."""
    kinds = set(getattr(model.config, "layer_types", None) or ()) - ATTENTION_TYPES
    if model._is_stateful or kinds or not model._supports_attention_backend:
        what = ", ".join(sorted(kinds)) or "state or attention of its own kind"
        raise DaliError(
            f"{type(model).__name__} has layers the engine cannot step ({what}).",
            "Load it with transformers and use dali.attach(model) to give it dali's experts.",
        )


def count_dense_bytes(skeleton: nn.Module, dtype: torch.dtype) -> int:
    experts = {id(p) for module in seam.experts_modules(skeleton).values() for p in module.parameters()}
    return sum(p.numel() for p in skeleton.parameters() if id(p) not in experts) * dtype.itemsize


def choose_layout(
    modules: list[ExpertsModule], quant: str, dense_bytes: int, ram: int | None, what: object, freed: int = 0
) -> ExpertLayout:
    """The packed format: as asked, or for "auto" w8 if it fits `ram` bytes beside dense weights, else w4.

    `ram`: None for what is free now, with `freed` bytes more. DaliError, naming `what`, when nothing fits.
    """
    count = sum(module.experts for module in modules)
    shape = modules[0].shape
    free = available_ram() + freed

    def need(layout: ExpertLayout) -> int:
        return count * layout.record_bytes + dense_bytes + HEADROOM

    candidates = ("w8", "w4") if quant == "auto" else (quant,)
    for name in candidates:
        layout = ExpertLayout(shape, get_format(name))
        if need(layout) <= (free if ram is None else ram):
            return layout
    smallest = need(ExpertLayout(shape, get_format("w4")))
    raise out_of_memory(what, layout.format_name, need(layout), smallest, ram, free)


def out_of_memory(
    what: object, format: str, need: int, smallest: int, ram: int | None, free: int
) -> DaliError:
    """`what` needs too many bytes in `format`: what it may take (`ram` as asked, or all that is free) and what would fit."""
    limit = f"{size(free)} are free" if ram is None else f"--ram allows {size(ram)}"
    problem = f"{what} needs {size(need - HEADROOM)} of memory with {format} experts, and {size(HEADROOM)} to work in; {limit}."
    if smallest < need and smallest <= (free if ram is None else ram):
        return DaliError(problem, f"With --quant w4 it needs {size(smallest - HEADROOM)}.")
    if ram is None:
        least = f" ({size(smallest - HEADROOM)} at least, with --quant w4)" if smallest < need else ""
        return DaliError(problem, f"Close other programs, or choose a smaller model{least}.")
    least = f", or --quant w4 --ram {enough(smallest)}" if smallest < need else ""
    return DaliError(
        problem, f"Give --ram {enough(need)}{least}, or choose a smaller model; {size(free)} are free."
    )


def load_dense(
    path: Path,
    config: Any,
    dtype: torch.dtype,
    state: Mapping[str, Tensor] | None = None,
    without: Iterable[str] = (),
) -> Any:
    """transformers' own loading of all but the experts, by a throw-away subclass that drops them on meta.

    The weights come from the directory `path`, or are `state`, parameter -> tensor of `dtype`, which the model keeps.
    The linears `without` get none but what is tied to others'.
    """
    base: Any = AutoModelForCausalLM._model_mapping[type(config)]

    class Stub(base):  # type: ignore[misc]
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            names = seam.experts_modules(self)
            seam.strip_experts(self)
            for name in without:
                if f"{name}.weight" not in self.all_tied_weights_keys:
                    seam.strip(self.get_submodule(name), "weight")
            patterns = {_any_layer(name) for name in names}
            ignored: set[str] = set(getattr(self, "_keys_to_ignore_on_load_unexpected", None) or ())
            self._keys_to_ignore_on_load_unexpected = ignored | patterns
            self.__class__ = base

    # transformers' conversion mapping keys on both
    Stub.__name__, Stub.__module__ = base.__name__, base.__module__
    with quiet_transformers():
        try:
            model, info = Stub.from_pretrained(
                path if state is None else None,
                state_dict=state,
                config=config,
                dtype=dtype,
                experts_implementation=seam.IMPLEMENTATION,
                attn_implementation=attention.IMPLEMENTATION,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise DaliError(
                f"transformers cannot load {path} ({reason(error)}).", "Download the model again."
            ) from error
    for name in sorted(info["missing_keys"]):
        raise DaliError(f"{path} has no weights for {name}.", "Download the model again, or pick another.")
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise DaliError(
            f"{name} in {path} is {list(found)}, its config says {list(expected)}.",
            "Download the model again.",
        )
    # Weights of unchanged dtype still are views of the mapped file; our own copy stays under a step.
    for tensor in (*model.parameters(), *model.buffers()) if state is None else ():
        tensor.data = tensor.data.clone()
    return model.eval().requires_grad_(False)


def _any_layer(name: str) -> str:
    """A regex for the keys of an experts module, in any layer."""
    return ".".join(r"\d+" if part.isdigit() else part for part in name.split(".")) + r"\."


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and notes of transformers' own: dali says what it does itself."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer in `directory`. DaliError when there is none or it is damaged."""
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # as in read_config
        raise DaliError(
            f"Cannot load the tokenizer of {directory} ({reason(error)}).", "Download the model again."
        ) from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # what transformers makes of no files
        raise DaliError(f"{directory} has no tokenizer.", "Download the model again.")
    return tokenizer
