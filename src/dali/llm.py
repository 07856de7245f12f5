"""`dali.load`, `dali.attach` and the LLM they are about."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Generator, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import partial
from operator import index
from textwrap import shorten
from typing import Any

import torch

from dali.engine.engine import Engine
from dali.engine.sampling import SamplingParams
from dali.engine.sequence import Sequence
from dali.errors import DaliError, UsageError, reason
from dali.fused import attention as decode
from dali.fused import dense
from dali.fused import layer as decoder_layer
from dali.fused import model as decoding_model
from dali.hooks import seam
from dali.hooks.moe_layer import MoELayer
from dali.kernels import native
from dali.kernels.formats import FORMATS, get_format
from dali.loading.chat_template import no_chat_template
from dali.loading.gguf.model import load_gguf
from dali.loading.locate import locate
from dali.loading.safetensors import HEADROOM, LoadedModel, choose_layout, load_model
from dali.offload.build import Offload, check, offload
from dali.progress import Meter, silent
from dali.runtime.executor import Executor
from dali.store.arena import Arena
from dali.store.checkpoint import canonical
from dali.store.packed.builder import discard
from dali.store.packed.reader import DamagedStore
from dali.telemetry import Telemetry
from dali.units import parse_size

# What a configuration may ask a forward pass for beside logits: nobody reads it, and collecting it watches every layer.
EXTRA_OUTPUTS = ("output_router_logits", "output_hidden_states", "output_attentions")
STEP_TOKENS = 512  # prefill chunk: enough rows for the kernels, short enough to keep others decoding

Message = dict[str, Any]
Prompt = str | list[int]


@dataclass(frozen=True)
class Completion:
    """What one prompt got. `finish_reason`: "stop", "length" or "abort"; seconds are measured wall-clock."""

    text: str
    tokens: list[int]
    prompt_tokens: int
    cached_tokens: int
    finish_reason: str
    prefill_seconds: float
    decode_seconds: float


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    quant: str = "auto",
    dtype: str = "auto",
    ctx_size: int | None = None,
    ram: int | str | None = None,
    threads: int | None = None,
    offline: bool = False,
    device: str = "cpu",
    vram: int | str | None = None,
    profile: str | None = None,
    assign: str | None = None,
    prefetch: str | None = None,
    cache: str | None = None,
    n_cpu_moe: int | None = None,
    policy: str | None = None,
    lossy: bool = False,
    seed: int = 0,
    meter: Meter = silent,
    notify: Callable[[str], None] = lambda message: None,
) -> LLM:
    """Load a Mixture-of-Experts model; its routed experts are packed, held and computed by dali.

    model: a directory, org/name, or None for the model that ships inside. quant: format of the experts in memory, "auto"
    (w8 if it fits, else w4), "f32", "f16", "bf16", "w8" or "w4". dtype: of everything else. ctx_size: tokens a sequence may
    have, at most what the model was made for. ram: host memory to plan with (bytes or "24GiB"). threads: CPU threads.
    device: "cpu", "cuda", "cuda:N" or "sim:PROFILE" (same results, modelled times). vram: accelerator memory for experts.
    profile: the hardware profile cuda plans with. assign, prefetch, cache: policies by name, None for the best known. n_cpu_moe:
    keep the experts of that many first layers on the CPU instead. policy: a whole published system by name (dali.systems), in
    place of these four; lossy: with those of its parts that change the model's answers. seed: of the starting residents and the
    simulator's schedule. meter, notify: are told of progress and of what is worth knowing.
    """
    _expect(str | os.PathLike | None, "a path or org/name; dali.attach takes models", model=model)
    _expect(int | None, "a whole number", threads=threads, ctx_size=ctx_size, n_cpu_moe=n_cpu_moe)
    _expect(int, "a whole number", seed=seed)
    _expect(str, "a name, as text", device=device)
    named = {"profile": profile, "assign": assign, "prefetch": prefetch, "cache": cache, "policy": policy}
    _expect(str | None, "a name, as text", **named)
    if threads is not None:
        cores = os.cpu_count() or 1
        if not 1 <= threads <= 4 * cores:
            raise UsageError(
                f"--threads {threads} is out of range: with more than 4 a core they only wait for each other, and there are "
                f"{cores} cores here.",
                f"Give 1 to {4 * cores}, or leave it out.",
            )
        torch.set_num_threads(threads)
    if native.enabled():
        native.set_threads(threads or torch.get_num_threads())
    ram, vram = _bytes("ram", ram), _bytes("vram", vram)
    choices = {
        "vram": vram,
        "profile": profile,
        "assign": assign,
        "prefetch": prefetch,
        "cache": cache,
        "n_cpu_moe": n_cpu_moe,
        "policy": policy,
        "lossy": lossy or None,
    }
    given = {name: value for name, value in choices.items() if value is not None}
    for part in ("assign", "prefetch", "cache", "n_cpu_moe") if policy is not None else ():
        if part in given:
            raise UsageError(
                f"--policy {policy} is a whole system and says itself what --{part.replace('_', '-')} would.",
                "Leave one of them out.",
            )
    for part in ("prefetch", "cache") if n_cpu_moe is not None else ():
        if part in given:
            raise UsageError(
                f"--n-cpu-moe {n_cpu_moe} leaves whole layers where they are, so nothing would follow --{part} {given[part]}.",
                "Leave one of them out.",
            )
    options = None
    if device != "cpu":
        options = Offload(device, **given, seed=seed)  # type: ignore[arg-type]  # names as there
        check(options)
    elif given and given != {"assign": "cpu"}:
        flag = next(iter(given)).replace("_", "-")
        raise UsageError(
            f"--{flag} is about an accelerator, and the device is cpu.", "Give --device too, or leave it out."
        )
    compiled = native.enabled()  # refuses a wrong choice before anything is loaded
    if not native.AVAILABLE:
        notify(
            "dali was built without its compiled kernels: torch computes, several times slower. "
            "Install a C++ compiler and reinstall dali."
        )
    path = locate(model, offline)
    kernels = compiled and not device.startswith(
        "cuda"
    )  # a simulated accelerator's dense work is the CPU's, too
    load_any = load_model if path.is_dir() else load_gguf
    attempt = partial(load_any, path, quant, dtype, ctx_size, ram, meter, notify, kernels)
    damage = None
    try:
        loaded = attempt()
    except DamagedStore as error:
        discard(error.path)
        damage = error.problem
    if damage is not None:  # the error is gone by now, and with it the memory that its frames held
        notify(f"{damage} It is built anew.")
        loaded = attempt()
    llm = LLM(loaded)
    if options is not None:
        room = None if ram is None else ram - llm.expert_bytes - llm.dense_bytes - HEADROOM
        llm.executor = offload(llm.loaded, llm.engine, options, meter, notify, room=room)
    if compiled and llm.model.device.type == "cpu":
        if llm.layout.format.quantized:
            dense.pack_linears(llm.model, get_format("w8"))
        dense.fuse_norms(llm.model)
        dense.fuse_routers(llm.model)
        decode.fuse_attention(llm.model)
        decoder_layer.fuse_layers(llm.model)
        llm.engine.decoder = decoding_model.fuse_model(llm.model)
    return llm


def _expect(kind: Any, meant: str, **given: object) -> None:
    """UsageError for a value of another kind; True and False are no numbers."""
    for name, value in given.items():
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UsageError(f"{name} cannot be {shorten(repr(value), 60)}.", f"Give {meant}.")


def _bytes(name: str, given: int | str | None) -> int | None:
    nbytes = parse_size(given) if isinstance(given, str) else given
    if nbytes is not None and (not isinstance(nbytes, int) or isinstance(nbytes, bool) or nbytes < 0):
        raise UsageError(f"--{name} cannot be {given!r}.", "Give bytes, 0 or more, or a size like 8GiB.")
    return nbytes


def attach(model: Any, *, quant: str = "w8") -> Any:
    """Give a loaded transformers model dali's experts, packed in `quant`, and return it; `model.generate` keeps working.

    A layer's own parameters are freed as soon as it is packed. DaliError if the model has no routed experts or `quant` cannot
    hold one of them.
    """
    if quant not in FORMATS:
        raise UsageError(f"Unknown quantization {quant!r}.", f"Choose one of {', '.join(FORMATS)}.")
    _expect(torch.nn.Module, "a loaded transformers model; dali.load takes names", model=model)
    name = type(model).__name__
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
                layout.pack(canonical(info, *parts), record)
            except DaliError as error:
                raise DaliError(
                    f"Expert {expert} of MoE layer {layer}: {error.problem} The model has lost the layers before.",
                    f"{error.fix} Load the model again first.",
                ) from error
        for name in names:
            module._parameters[name] = None
    telemetry = Telemetry()
    seam.install(model, [MoELayer(i, layout, layer, telemetry) for i, layer in enumerate(records)])
    return model


class LLM:
    """A loaded model. Not thread-safe: one thread steps it; generators of several `stream` calls may be interleaved."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.executor: Executor | None = None  # where an accelerator takes part
        self.name = loaded.name
        self.model = loaded.model
        for extra in EXTRA_OUTPUTS:
            setattr(self.model.config, extra, False)
        self.tokenizer = loaded.tokenizer
        self.layout = loaded.layout
        self.format_name = loaded.format_name
        self.telemetry = loaded.telemetry
        self.expert_bytes = loaded.expert_bytes
        self.ctx_size = loaded.ctx_size
        self.defaults = _default_sampling(self.model.generation_config)
        self.eos = _eos(self.model, self.tokenizer)
        self.engine = Engine(self.model, STEP_TOKENS)

    def __repr__(self) -> str:
        device = "cpu" if self.executor is None else self.executor.device.name
        return f"<LLM {self.name}: {self.format_name} experts, context {self.ctx_size}, device {device}>"

    def stats(self) -> dict[str, Any]:
        """What the runtime has done so far: lookups by tier, bytes by link, prefetches, seconds, in all and a layer;
        "converted", what reading the model's file lost: "Q6_K to w8" -> relative L2 error of those experts' weights; "policy",
        the system that decides, if one was named; "lossy", its lossy parts that are on, and of how many (token, expert) pairs
        they changed how many, and how."""
        loaded = self.loaded
        return self.telemetry.as_dict() | {
            "converted": loaded.converted,
            "policy": loaded.system,
            "lossy": loaded.lossy,
        }

    @property
    def dense_bytes(self) -> int:
        """Memory of everything but the experts."""
        return sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers()))

    def generate(self, prompts: Prompt | Many[Prompt], **sampling: Any) -> Any:
        """Complete one prompt (text or token ids) -> Completion, or several at once -> list of Completion, in their order.

        sampling: fields of SamplingParams; what is left out comes from the model's generation_config.
        """
        several = isinstance(prompts, Many) and not isinstance(prompts, str)
        if several and not (prompts and isinstance(prompts[0], int)):
            return self._complete([self.sequence(prompt, **sampling) for prompt in prompts])  # type: ignore[arg-type]
        return self._complete([self.sequence(prompts, **sampling)])[0]  # type: ignore[arg-type]

    def stream(self, prompt: Prompt, **sampling: Any) -> Iterator[str]:
        """Complete one prompt; yields text as it becomes final, whole characters only."""
        return self.pieces(self.sequence(prompt, **sampling))

    def chat(self, messages: Many[Message], **sampling: Any) -> Completion:
        """Answer a conversation, [{"role": ..., "content": ...}, ...], through the model's own chat template."""
        return self._complete([self.sequence(self.chat_prompt(messages), **sampling)])[0]

    def chat_prompt(self, messages: Many[Message]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer."""
        listed = isinstance(messages, Many) and messages
        if not listed or not all(isinstance(message, dict) and "role" in message for message in messages):
            raise UsageError(
                "A conversation is a list of messages, at least one, each with its role.",
                'Write [{"role": "user", "content": "Hello"}].',
            )
        if not self.tokenizer.chat_template:
            raise no_chat_template(self.name)
        try:
            ids: list[int] = self.tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                tokenizer_kwargs={"verbose": False},  # of too long ones our own limit says more
            )
        except Exception as error:  # what a template calls and divides is its own affair
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == "<template>"]
            where = f" at line {lines[-1]}" if lines else ""
            raise UsageError(
                f"The chat template of {self.name} fails on this conversation{where} ({reason(error)}).",
                "Give messages it is made for (some take no system prompt), or another template (`dali run --chat-template`).",
            ) from error
        return ids

    def sequence(self, prompt: Prompt, **sampling: Any) -> Sequence:
        """A request that is ready to join the engine. UsageError: no prompt, unknown token, no room in the context."""
        try:
            ids = self.encode(prompt) if isinstance(prompt, str) else [index(token) for token in prompt]
        except TypeError as error:
            raise UsageError(
                f"A prompt is text or a list of token ids, not {shorten(repr(prompt), 60)}.",
                "Give one of these; a conversation goes to `chat`.",
            ) from error
        if not ids:
            raise UsageError("The prompt is empty.", "Give at least one token of text.")
        vocabulary = self.model.config.vocab_size
        if not all(0 <= token < vocabulary for token in ids):
            raise UsageError(
                f"The prompt has a token id outside 0 to {vocabulary - 1}.",
                "Encode it with this model's tokenizer.",
            )
        most = self.model.config.max_position_embeddings
        if len(ids) >= self.ctx_size:
            raise UsageError(
                f"The prompt has {len(ids)} tokens; with a context of {self.ctx_size} "
                f"at most {self.ctx_size - 1} leave room for an answer.",
                "Shorten it."
                if self.ctx_size == most
                else f"Shorten it, or raise --ctx-size (at most {most}).",
            )
        unknown = set(sampling) - set(self.defaults)
        if unknown:
            raise UsageError(
                f"Unknown sampling parameter {min(unknown)!r}.",
                f"Known parameters: {', '.join(self.defaults)}.",
            )
        given = {name: value for name, value in sampling.items() if value is not None}
        params = SamplingParams(**(self.defaults | given))
        limit = (
            self.ctx_size if params.max_tokens is None else min(self.ctx_size, len(ids) + params.max_tokens)
        )
        sequence = Sequence(ids, params, self.tokenizer, self.eos, limit)
        if isinstance(prompt, str):
            sequence.continue_text()
        return sequence

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, special tokens as the tokenizer adds them."""
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]  # as in chat_prompt
        return ids

    def pieces(self, sequence: Sequence) -> Generator[str, None, None]:
        """Run one sequence; yields its text as it becomes final. Closing the generator aborts it."""
        self.engine.add(sequence)
        try:
            while sequence.pieces or sequence.finish_reason is None:
                if sequence.pieces:
                    yield sequence.pieces.popleft()
                else:
                    self.engine.step()
        finally:
            self.engine.abort(sequence)
        if sequence.error is not None:
            raise sequence.error

    def _complete(self, sequences: list[Sequence]) -> list[Completion]:
        for sequence in sequences:
            self.engine.add(sequence)
        try:
            while any(sequence.finish_reason is None for sequence in sequences):
                self.engine.step()
        finally:
            for sequence in sequences:
                self.engine.abort(sequence)
        for sequence in sequences:
            if sequence.error is not None:
                raise sequence.error
        return [completion(sequence) for sequence in sequences]


def completion(sequence: Sequence) -> Completion:
    """The result of a finished sequence; takes the text that is left in it."""
    return Completion(
        text="".join(sequence.pieces),
        tokens=sequence.generated,
        prompt_tokens=sequence.prompt_tokens,
        cached_tokens=sequence.cached_tokens,
        finish_reason=sequence.finish_reason or "abort",
        prefill_seconds=sequence.prefill_seconds,
        decode_seconds=sequence.decode_seconds,
    )


# llama.cpp's defaults, for models whose generation_config does not say how to sample.
_FALLBACK_SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}


def _default_sampling(config: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"max_tokens": None, "seed": None, "stop": (), "ignore_eos": False}
    if not config.do_sample:
        return defaults | _FALLBACK_SAMPLING
    given = {name: getattr(config, name, None) for name in _FALLBACK_SAMPLING}
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    return defaults | {name: off[name] if value is None else value for name, value in given.items()}


def _eos(model: Any, tokenizer: Any) -> frozenset[int]:
    ids = [model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id]
    return frozenset(
        i for entry in ids for i in (entry if isinstance(entry, list) else [entry]) if i is not None
    )
