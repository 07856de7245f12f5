"""A loaded model that answers: prompts and conversations in, text out."""

from __future__ import annotations

import gc
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Iterator, Mapping
from collections.abc import Sequence as Many
from contextlib import aclosing, closing
from dataclasses import dataclass, fields, replace
from operator import index
from textwrap import shorten
from threading import Lock
from typing import Any, Literal, Self, Unpack, overload

import numpy as np

from dali.conversation import Message, encodable, plain_messages
from dali.engine.asynchronous import in_threads
from dali.engine.engine import Engine
from dali.engine.logprobs import TokenLogprob
from dali.engine.loop import Loop
from dali.engine.request import Request
from dali.engine.sampling import Sampling, SamplingParams
from dali.engine.sequence import Sequence
from dali.engine.text.ends import end_ids, take_for_control
from dali.engine.text.length import check_texts, too_long
from dali.engine.text.piece import Piece
from dali.engine.text.prompt import Tool, begun_answer, chat_prompt, plain_prompt
from dali.engine.text.structure import Structure, calling_structure_of, structure_of
from dali.engine.text.text import Text
from dali.errors import UsageError
from dali.loading.chat_template import no_chat_template
from dali.loading.loaded import LoadedModel
from dali.offload.accelerated import AcceleratedExperts
from dali.runtime.executor import Executor

# What a configuration may ask a forward pass for beside logits: nobody reads it, and collecting it watches every layer.
EXTRA_OUTPUTS = ("output_router_logits", "output_hidden_states", "output_attentions")
STEP_TOKENS = 512  # prefill chunk: enough rows for the kernels, short enough to keep others decoding

Prompt = str | Many[int]


@dataclass(frozen=True)
class Completion:
    """What one prompt got. `finish_reason`: "stop", "length" or "abort"; seconds are measured wall-clock; `logprobs`: one for
    each of `tokens`, where they were asked for; `reasoning`: what came before the answer proper in a chat, where the model's
    tokens tell the two apart."""

    text: str
    tokens: list[int]
    prompt_tokens: int
    cached_tokens: int
    finish_reason: str
    prefill_seconds: float
    decode_seconds: float
    logprobs: list[TokenLogprob] | None = None
    reasoning: str = ""


class LLM:
    """A loaded model. Requests of several threads, and streams that one thread reads by turns, share the model's steps; each gets
    the answer it gets alone. `close`, or the end of a `with`, gives the memory back."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.accelerated: AcceleratedExperts | None = None  # where an accelerator takes part
        self.name = loaded.name
        self.model = loaded.model
        for extra in EXTRA_OUTPUTS:
            setattr(self.model.config, extra, False)
            setattr(self.model.config.get_text_config(), extra, False)
        self.tokenizer = loaded.tokenizer
        self.layout = loaded.layout
        self.format_name = loaded.format_name
        self.telemetry = loaded.telemetry
        self.expert_bytes = loaded.expert_bytes
        self.ctx_size = loaded.ctx_size
        self._most: int = self.model.config.get_text_config().max_position_embeddings
        self.defaults = _FALLBACK_SAMPLING | loaded.sampling
        self.variables: dict[str, Any] = {}  # of the chat template, where a call does not say otherwise
        self.controls = take_for_control(self.tokenizer)  # tokens that the model's files take for text
        self.eos = _eos(self.model, self.tokenizer)
        self.engine = Engine(self.model, STEP_TOKENS)
        self.loop = Loop(self.engine)
        self._encoding = Lock()  # a fast tokenizer refuses a second thread while it changes its own settings

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the model's memory back; answers under way end as they are. It cannot be used afterwards."""
        if "loop" in self.__dict__:
            if not self.loop.forked:
                with self.loop.between_steps() as engine:
                    engine.close()
                if self.executor is not None:
                    self.executor.device.close()
            name = self.name
            self.__dict__.clear()
            self._closed = name
            gc.collect()  # what stands in for a module's forward and the module hold each other

    def __getattr__(self, name: str) -> Any:
        """For an attribute that is not there."""
        if "_closed" in self.__dict__ and not name.startswith("__"):
            raise UsageError(f"{self._closed} was closed.", "Load it again with dali.load.")
        raise AttributeError(f"LLM has no attribute {name!r}")

    def __repr__(self) -> str:
        if "_closed" in self.__dict__:
            return f"<LLM {self._closed}: closed>"
        device = "cpu" if self.executor is None else self.executor.device.name
        return f"<LLM {self.name}: {self.format_name} experts, context {self.ctx_size}, device {device}>"

    @property
    def executor(self) -> Executor | None:
        """The runtime over an accelerator, where one takes part."""
        return None if self.accelerated is None else self.accelerated.executor

    def accelerate(self, experts: AcceleratedExperts) -> None:
        """From here on, compute routed experts as `experts` do; the telemetry begins anew."""
        self.accelerated = experts
        experts.install(self.model, self.telemetry)
        self.engine.follow(
            experts.clock, experts.begin, experts.embeddings, experts.step_tokens, experts.budget
        )
        if experts.decoder is not None:
            self.engine.decoder = experts.decoder

    def stats(self) -> dict[str, Any]:
        """What the runtime has done so far: lookups by tier, bytes by link, prefetches, seconds, in all and a layer;
        "converted", what reading the model's file lost: "Q6_K to w8" -> relative L2 error of those experts' weights;
        "converted_linears", the same of linears; "policy", the system that decides, if one was named; "lossy", its lossy parts
        that are on, and of how many (token, expert) pairs they changed how many, and how; "draft_accepted", "draft_rejected",
        tokens that were guessed; "prefixes", what the prefix cache has in RAM, and what it served."""
        accelerated = self.accelerated
        return self.telemetry.as_dict() | {
            "converted": self.loaded.converted,
            "converted_linears": self.loaded.converted_linears,
            "policy": None if accelerated is None else accelerated.system,
            "lossy": {} if accelerated is None else accelerated.lossy,
            "prefixes": self.engine.prefixes.stats(),
        }

    @property
    def dense_bytes(self) -> int:
        """Memory of everything but the experts."""
        return self.loaded.dense_bytes

    @overload
    def generate(self, prompts: str, **sampling: Unpack[Sampling]) -> Completion: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompts: Many[int], **sampling: Unpack[Sampling]) -> Completion: ...
    @overload
    def generate(self, prompts: Many[Prompt], **sampling: Unpack[Sampling]) -> list[Completion]: ...
    def generate(
        self, prompts: Prompt | Many[Prompt], **sampling: Unpack[Sampling]
    ) -> Completion | list[Completion]:
        """Complete one prompt (text or token ids) -> Completion, or several at once -> list of Completion, in their order.

        sampling: fields of SamplingParams; what is left out comes from the model's generation_config, or from
        `params=SamplingParams(...)` where that is given.
        """
        if isinstance(prompts, Many) and not isinstance(prompts, str) and not _are_ids(prompts):
            return self._complete([self.sequence(prompt, **sampling) for prompt in prompts])  # type: ignore[arg-type]
        return self._complete([self.sequence(prompts, **sampling)])[0]  # type: ignore[arg-type]

    def stream(self, prompt: Prompt, **sampling: Unpack[Sampling]) -> Iterator[str]:
        """Complete one prompt; yields text as it becomes final, whole characters only."""
        return _texts(self.loop.stream(self.sequence(prompt, **sampling)))

    async def astream(self, prompt: Prompt, **sampling: Unpack[Sampling]) -> AsyncIterator[str]:
        """As `stream`, for an event loop, which goes on meanwhile. Whoever stops before the end closes it (`aclose`)."""
        sequence = self.sequence(prompt, **sampling)
        async with aclosing(self._asynchronous(sequence)) as pieces:
            async for piece in pieces:
                yield piece.text

    def _asynchronous(self, sequence: Sequence) -> AsyncGenerator[Piece, None]:
        return in_threads(self.loop.stream(sequence), lambda: self.loop.abort([sequence]))

    @overload
    def chat(
        self,
        messages: Many[Message],
        *,
        stream: Literal[False] = False,
        tools: Many[Tool] | None = None,
        template: Mapping[str, Any] | None = None,
        **sampling: Unpack[Sampling],
    ) -> Completion: ...
    @overload
    def chat(
        self,
        messages: Many[Message],
        *,
        stream: Literal[True],
        tools: Many[Tool] | None = None,
        template: Mapping[str, Any] | None = None,
        **sampling: Unpack[Sampling],
    ) -> Iterator[Piece]: ...
    def chat(
        self,
        messages: Many[Message],
        *,
        stream: bool = False,
        tools: Many[Tool] | None = None,
        template: Mapping[str, Any] | None = None,
        **sampling: Unpack[Sampling],
    ) -> Completion | Iterator[Piece]:
        """Answer a conversation, [{"role": ..., "content": ...}, ...], through the model's own chat template -> Completion;
        `stream`: Pieces of text and of reasoning as they become final. An assistant's message that comes last is continued.

        tools: JSON schemas of what the model may call, or functions with type hints and docstrings; a call is part of the text.
        template: what the chat template calls its variables, as {"enable_thinking": False}.
        """
        sequence = self.chat_sequence(messages, tools=tools, template=template, **sampling)
        return self.loop.stream(sequence) if stream else self._complete([sequence])[0]

    async def achat(
        self,
        messages: Many[Message],
        *,
        tools: Many[Tool] | None = None,
        template: Mapping[str, Any] | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncIterator[Piece]:
        """As `chat` with `stream`, for an event loop; the rest as `astream`."""
        sequence = self.chat_sequence(messages, tools=tools, template=template, **sampling)
        async with aclosing(self._asynchronous(sequence)) as pieces:
            async for piece in pieces:
                yield piece

    def chat_prompt(
        self,
        messages: Many[Message],
        tools: Many[Tool] | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer."""
        plain = plain_messages(messages)
        if not self.tokenizer.chat_template:
            raise no_chat_template(self.name)
        with self._encoding:
            return chat_prompt(
                self.tokenizer, self.name, plain, tools, {**self.variables, **(template or {})}
            )

    def chat_sequence(
        self,
        messages: Many[Message],
        *,
        tools: Many[Tool] | None = None,
        template: Mapping[str, Any] | None = None,
        calls: int | None = 0,
        **sampling: Unpack[Sampling],
    ) -> Sequence:
        """As `sequence`, for a conversation: the answer's text and reasoning are told apart.

        calls: how many calls of `tools`, then JSON schemas, are told apart from the text; after so many the answer ends. None for
        any number; with 0 they are text.
        """
        plain = plain_messages(messages)
        # Of answers, templates may leave out the reasoning.
        self._check_texts(message.get("content") for message in plain if message["role"] != "assistant")
        ids = self.chat_prompt(plain, tools, template)
        said = begun_answer(plain)
        if tools and calls != 0:
            schemas = [tool for tool in tools if isinstance(tool, dict)]
            structure = calling_structure_of(self.tokenizer, ids, said, schemas, calls)
        else:
            structure = structure_of(self.tokenizer, ids, said)
        return self._sequence(ids, bool(said), structure, **sampling)

    def sequence(self, prompt: Prompt, **sampling: Unpack[Sampling]) -> Sequence:
        """A request that is ready to join the engine. UsageError: no prompt, unknown token, no room in the context."""
        if isinstance(prompt, str):
            self._check_texts([prompt])
        try:
            ids = self.encode(prompt) if isinstance(prompt, str) else [index(token) for token in prompt]
        except TypeError as error:
            raise UsageError(
                f"A prompt is text or a list of token ids, not {shorten(repr(prompt), 60)}.",
                "Give one of these; a conversation goes to `chat`.",
            ) from error
        return self._sequence(ids, isinstance(prompt, str), None, **sampling)

    def _sequence(
        self, ids: list[int], continues: bool, structure: Structure | None, **sampling: Unpack[Sampling]
    ) -> Sequence:
        """continues: what comes is the rest of the prompt's last word, or follows it, in one text."""
        if not ids:
            raise UsageError("The prompt is empty.", "Give at least one token of text.")
        vocabulary = self.model.config.get_text_config().vocab_size
        if not all(0 <= token < vocabulary for token in ids):
            raise UsageError(
                f"The prompt has a token id outside 0 to {vocabulary - 1}.",
                "Encode it with this model's tokenizer.",
            )
        if len(ids) >= self.ctx_size:
            raise too_long(len(ids), self.ctx_size, self._most)
        params = self.sampling_params(**sampling)
        limit = (
            self.ctx_size if params.max_tokens is None else min(self.ctx_size, len(ids) + params.max_tokens)
        )
        text = Text(self.tokenizer, tuple(params.stop), structure)
        if continues:
            text.follow(ids[-1])
        borders = tuple(at for at, token in enumerate(ids, 1) if token in self.eos)
        return Sequence(Request(tuple(ids), limit, params, self.eos, borders), text)

    def _check_texts(self, texts: Iterable[object]) -> None:
        with self._encoding:
            check_texts(self.tokenizer, texts, self.ctx_size, self._most)

    def sampling_params(self, **sampling: Unpack[Sampling]) -> SamplingParams:
        """What is given, over the model's own defaults or `params`; None is as good as not given. UsageError: no such parameter,
        or value."""
        params = sampling.pop("params", None)
        if not isinstance(params, SamplingParams | None):
            raise UsageError(
                f"params cannot be {params!r:.60}.", "Give dali.SamplingParams(...), or its fields by name."
            )
        known = [field.name for field in fields(SamplingParams)]
        if unknown := set(sampling).difference(known):
            raise UsageError(
                f"Unknown sampling parameter {min(unknown)!r}.", f"Known parameters: {', '.join(known)}."
            )
        plain = {
            name: value.item() if isinstance(value, np.generic) else value for name, value in sampling.items()
        }
        given: dict[str, Any] = {name: value for name, value in plain.items() if value is not None}
        return SamplingParams(**(self.defaults | given)) if params is None else replace(params, **given)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text that is to be continued, after what the tokenizer begins a text with."""
        with self._encoding:
            return plain_prompt(self.tokenizer, text)

    def encode_further(self, text: str) -> list[int]:
        """Token ids of text amid a text, which nothing is put before; what spells a control token is one."""
        with self._encoding:
            ids: list[int] = self.tokenizer(encodable(text), add_special_tokens=False, verbose=False)[
                "input_ids"
            ]
            return ids

    def decode(self, ids: Many[int]) -> str:
        """The text of token ids, control tokens spelt out."""
        with self._encoding:
            text: str = self.tokenizer.decode(
                [*ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            return text

    def _complete(self, sequences: list[Sequence]) -> list[Completion]:
        self.loop.complete(sequences)
        return [completion(sequence) for sequence in sequences]


def completion(sequence: Sequence) -> Completion:
    """The result of a finished sequence; takes the text that is left in it."""
    pieces = [] if sequence.text is None else list(sequence.text.pieces)
    return Completion(
        text="".join(piece.text for piece in pieces),
        tokens=sequence.generated,
        prompt_tokens=sequence.prompt_tokens,
        cached_tokens=sequence.cached_tokens,
        finish_reason=sequence.finish_reason or "abort",
        prefill_seconds=sequence.prefill_seconds,
        decode_seconds=sequence.decode_seconds,
        logprobs=None if sequence.request.params.logprobs is None else sequence.logprobs,
        reasoning="".join(piece.reasoning for piece in pieces),
    )


def _texts(pieces: Generator[Piece, None, None]) -> Iterator[str]:
    with closing(pieces):
        for piece in pieces:
            yield piece.text


def _are_ids(prompts: Many[Any]) -> bool:
    """Whether these are one prompt's token ids, of whatever integer type, and not prompts."""
    return bool(prompts) and not isinstance(prompts[0], str) and hasattr(prompts[0], "__index__")


# llama.cpp's defaults, for models whose files do not say how to sample.
_FALLBACK_SAMPLING: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}


def _eos(model: Any, tokenizer: Any) -> frozenset[int]:
    own = model.config.get_text_config().eos_token_id
    ids = [model.generation_config.eos_token_id, own, tokenizer.eos_token_id]
    named = {i for entry in ids for i in (entry if isinstance(entry, list) else [entry]) if i is not None}
    return end_ids(tokenizer) | named
