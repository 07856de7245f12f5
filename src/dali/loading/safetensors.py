"""A directory with config.json and safetensors weights, as transformers and the Hugging Face hub have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.conversion_mapping import get_model_conversion_mapping

from dali.errors import DaliError, parameter, reason, unreadable
from dali.hooks import seam
from dali.hooks.attention import set_windows
from dali.hooks.moe_layer import MoELayer
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import FORMATS
from dali.loading.budget import choose_context, choose_layout, count_dense_bytes
from dali.loading.dense import load_dense
from dali.loading.further_tokens import further_blocks, left_out
from dali.loading.generation_config import read_generation_config, read_token_ids
from dali.loading.loaded import LoadedModel
from dali.loading.locate import BUNDLED, display_name
from dali.loading.on_disk import fit, open_pool, told
from dali.loading.panic import panics_as_errors
from dali.loading.skeleton import quiet_transformers
from dali.loading.source import ModelSource
from dali.options import LoadOptions
from dali.progress import Meter
from dali.store.arena import Arena
from dali.store.cache import store_path
from dali.store.checkpoint import Checkpoint, CheckpointExperts
from dali.store.disk_pool import DiskPlan, DiskPool
from dali.store.expert_pool import ExpertPool
from dali.store.fp8 import SCALE
from dali.store.packed.builder import discard, ensure_store
from dali.store.packed.header import StoreHeader
from dali.store.packed.reader import DamagedStore, StoreReader
from dali.telemetry import Telemetry

READ = ("mxfp4", "fp8")  # methods of quantization whose weights dali turns into floats
TOKENIZER_MODEL = "tokenizer.model"
TOKENIZERS = ("tokenizer.json", TOKENIZER_MODEL, "vocab.json", "vocab.txt", "tekken.json")
SENTENCEPIECE = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}  # package -> its module
TIKTOKEN = {"tiktoken": "tiktoken"}


class SafetensorsModel(ModelSource):
    """A directory with config.json and weights."""

    @property
    def name(self) -> str:
        return display_name(self.path)

    @cached_property
    def config(self) -> Any:
        return read_config(self.path)

    @property
    def quantization(self) -> str | None:
        """How config.json says the weights are quantized, None: they are not."""
        return quantization_of(json.loads((self.path / "config.json").read_bytes()))

    @cached_property
    def tokenizer(self) -> Any:
        return read_tokenizer(self.path)

    @property
    def has_chat_template(self) -> bool:
        with suppress(OSError):  # nearly always enough, and cheaper than the tokenizer
            config = (self.path / "tokenizer_config.json").read_bytes()
            if (self.path / "chat_template.jinja").is_file() or b'"chat_template"' in config:
                return True
        try:
            return bool(self.tokenizer.chat_template)
        except DaliError:
            return True

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The weights' files, their headers read."""
        return Checkpoint(self.path)

    def dtype(self, asked: str, compiled: bool) -> torch.dtype:
        if asked != "auto":
            return getattr(torch, asked)  # type: ignore[no-any-return]
        own: torch.dtype | None = getattr(self.config, "dtype", None)
        if own is None or (
            own == torch.float16 and compiled
        ):  # the kernels lack it; float32 holds the same values
            return torch.float32
        return own

    def layouts(
        self, quant: str, dtype: torch.dtype, ram: int | None, compiled: bool = False
    ) -> list[ExpertLayout]:
        what = self.name if self.path.parent == BUNDLED else self.path
        dense_bytes = count_dense_bytes(self.skeleton, dtype)
        format = self._own_format() if quant == "keep" else quant
        return [choose_layout(self.modules, format, dense_bytes, ram, what)] * len(self.modules)

    def _own_format(self) -> str:
        """The packed format with the values of the checkpoint's experts, in the type that its config says. DaliError where there
        is none."""
        method = self.quantization
        if method == "fp8":
            raise DaliError(
                f"The experts of {self.path} are in FP8, and dali packs no such values.",
                f"Give {parameter('quant')} f32, which holds them, bf16, which rounds them, or w8.",
            )
        own = self.dtype("auto", compiled=False)
        return method or next(format.name for format in FORMATS.values() if format.dtype == own)

    def load(
        self, options: LoadOptions, compiled: bool, meter: Meter, notify: Callable[[str], None]
    ) -> LoadedModel:
        """A store that turns out to be damaged is built anew, once, which is said."""
        _ = self.modules  # a model that cannot be run at all is the worse news
        ctx_size = choose_context(self.config, options, self.name)
        damage = None
        try:
            return self._load(ctx_size, options, compiled, meter, notify)
        except DamagedStore as error:
            discard(error.path)
            damage = error.problem
        # The error is gone by now, and with it the memory that its frames held.
        notify(f"{damage} It is built anew.")
        return self._load(ctx_size, options, compiled, meter, notify)

    def _load(
        self, ctx_size: int, options: LoadOptions, compiled: bool, meter: Meter, notify: Callable[[str], None]
    ) -> LoadedModel:
        modules = self.modules
        tokenizer, checkpoint = self.tokenizer, self.checkpoint
        mapping = get_model_conversion_mapping(self.skeleton)
        experts = CheckpointExperts(checkpoint, modules, mapping, self.skeleton)
        tied: Any = self.skeleton.all_tied_weights_keys
        weights = self.skeleton.state_dict()
        checkpoint.check_shapes(
            {name: weights[name] for name in tied}
        )  # which transformers compares with what they are tied to
        dtype = self.dtype(options.dtype, compiled)
        layouts, disk = self._fit(dtype, options, compiled)

        # Experts first: while they are packed, no dense weights are in memory yet.
        store = self._ensure_store(experts, layouts[0], meter, notify, disk is not None)
        said = read_generation_config(self.path, tokenizer, ctx_size)
        odd: list[str] = []
        text = self.config.get_text_config()
        own = getattr(self.config, "eos_token_id", None) if text.eos_token_id is None else text.eos_token_id
        named = read_token_ids(own, tokenizer, odd)
        text.eos_token_id = named[0] if len(named) == 1 else named or None
        unmeant = f"{self.path / 'config.json'} is read without what cannot be meant: {', '.join(odd)}."
        for note in [unmeant] * bool(odd) + said.notes + left_out(further_blocks(checkpoint.location)):
            notify(note)
        ends = text.eos_token_id if said.ends is None else said.ends
        model = self._load_dense(
            experts, dtype, GenerationConfig(eos_token_id=ends or None), disk is not None
        )
        set_windows(model, self.calls.windows)
        pool: ExpertPool
        if disk is None:
            pool = ExpertPool(layouts, _read_store(store, meter).by_layer(len(modules)))
        else:
            self.checkpoint.forget()
            pool = open_pool(store, disk, notify)
        telemetry = Telemetry()
        if isinstance(pool, DiskPool):
            telemetry.follow_disk(pool.counters)
        seam.install(model, [MoELayer(index, pool, telemetry) for index in range(pool.layers)])
        return LoadedModel(
            self.name,
            checkpoint.fingerprint,
            model,
            tokenizer,
            pool,
            telemetry,
            ctx_size,
            self.calls.top_k,
            said.sampling,
            disk=disk,
        )

    def _fit(
        self, dtype: torch.dtype, options: LoadOptions, compiled: bool
    ) -> tuple[list[ExpertLayout], DiskPlan | None]:
        return fit(
            lambda ram: self.layouts(options.quant, dtype, ram),
            self.name,
            options,
            compiled,
            self.calls,
            self.skeleton,
            dtype,
        )

    def _load_dense(
        self, experts: CheckpointExperts, dtype: torch.dtype, generation: GenerationConfig, budget: bool
    ) -> Any:
        """transformers reads files as they are; weights in float8 are turned into `dtype` before it gets them. With a `budget` of
        RAM it is given all, unless it turns them into `dtype`: files that it maps fill the page cache, experts and all."""
        if self.quantization != "fp8" and not (budget and dtype == self.dtype("auto", compiled=False)):
            return load_dense(self.path, self.config, dtype, generation=generation)
        state = {}
        for name in experts.dense:
            tensor = self.checkpoint.read(name)
            quantized = name + SCALE in self.checkpoint.location
            state[name] = tensor.to(dtype) if quantized else tensor.clone()  # files are unmapped below
        self.checkpoint.close()
        return load_dense(self.path, self.config, dtype, state, generation=generation)

    def _ensure_store(
        self,
        experts: CheckpointExperts,
        layout: ExpertLayout,
        meter: Meter,
        notify: Callable[[str], None],
        on_disk: bool,
    ) -> Path:
        """Where the packed experts lie; packs them if they are not there yet. `on_disk`: they are read from there while the model
        runs."""
        modules, fingerprint = self.modules, self.checkpoint.fingerprint
        header = StoreHeader(self.name, fingerprint, len(modules), modules[0].experts, layout)
        path = store_path(self.path, layout.format.name)
        what, nbytes = f"Packing experts to {layout.format.name}", header.records * header.record_bytes

        def start() -> Callable[[int], None]:
            return meter(what, nbytes)

        ensure_store(path, header, experts, told(path, header, start, notify) if on_disk else start, notify)
        self.checkpoint.close()
        return path


def _read_store(path: Path, meter: Meter) -> Arena:
    with StoreReader(path) as reader:
        return reader.read_all(meter("Loading experts", reader.header.records * reader.header.record_bytes))


def quantization_of(raw: dict[str, Any]) -> str | None:
    """The method that the JSON of a configuration names, None without one."""
    quantization = raw.get("quantization_config") or {}
    return quantization.get("quant_method", "an unknown method") if quantization else None


def read_config(directory: Path) -> Any:
    """The model's transformers configuration. DaliError for what transformers or dali cannot run."""
    path = directory / "config.json"
    try:
        raw = json.loads(path.read_bytes())
        if not isinstance(raw, dict):
            raise ValueError(f"it holds {raw!r:.60}, and no object")
        with quiet_transformers():
            config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        dtype = getattr(config, "dtype", None)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"its dtype is {dtype!r:.60}, which weights cannot have")
        method = quantization_of(raw)
    except PermissionError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # transformers stumbles over a wrong value wherever it first uses it
        raise DaliError(
            f"Cannot read {path} ({reason(error)}).",
            "It must be the config.json of a model that transformers knows.",
        ) from error
    text = config.get_text_config()
    # Nothing is padded here, and an id that is no token keeps transformers from building the model. Models that take images, too,
    # ask for their text's in each step.
    if text is config or not 0 <= (text.pad_token_id or 0) < text.vocab_size:
        text.pad_token_id = None
    if method in READ or (method is None and hasattr(config, "quantization_config")):
        del config.quantization_config  # or transformers would quantize what dali gives it
    elif method is not None:
        raise DaliError(
            f"{directory} is quantized with {method}, which dali cannot read.",
            f"Use the model in bfloat16 or FP8; dali quantizes its experts itself ({parameter('quant')} w8 or w4).",
        )
    return config


def read_tokenizer(directory: Path) -> Any:
    """The tokenizer in `directory`. DaliError when there is none, it is damaged, or a package to read it is not here."""
    try:
        with quiet_transformers(), panics_as_errors():
            tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except PermissionError as error:
        raise unreadable(error.filename or directory, error) from error
    except Exception as error:  # as in read_config
        if packages := _lacking_packages(directory):
            raise DaliError(
                f"The tokenizer of {directory} is a {TOKENIZER_MODEL}, which takes {' and '.join(packages)} to be read.",
                f"Install what is missing: `pip install {' '.join(packages)}`.",
            ) from error
        if not any((directory / name).is_file() for name in TOKENIZERS):
            raise DaliError(f"{directory} has no tokenizer.", "Download the model again.") from error
        raise DaliError(
            f"Cannot load the tokenizer of {directory} ({reason(error)}).", "Download the model again."
        ) from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # what transformers makes of no files
        raise DaliError(f"{directory} has no tokenizer.", "Download the model again.")
    return tokenizer


def _lacking_packages(directory: Path) -> list[str]:
    """The packages that transformers needs to read the only tokenizer in `directory`, and that are not installed. The file's name
    does not tell whose it is: sentencepiece's begin with the tag of a message's first field, tiktoken's are text."""
    path = directory / TOKENIZER_MODEL
    if (directory / "tokenizer.json").is_file() or not path.is_file():
        return []
    with path.open("rb") as file:
        modules = SENTENCEPIECE if file.read(1) == b"\n" else TIKTOKEN
    return [package for package, module in modules.items() if not _is_installed(module)]


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
