"""A loaded model that answers: prompts and conversations in, text out."""

from __future__ import annotations

import gc
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Iterator, Mapping
from collections.abc import Sequence as Many
from contextlib import aclosing, closing
from operator import index
from textwrap import shorten
from typing import Any, Literal, Self, Unpack, overload

from dali.conversation import Message, plain_messages
from dali.engine.asynchronous import in_threads
from dali.engine.completion import Completion, completion
from dali.engine.constraint.grammars import Grammars
from dali.engine.constraint.lark import Schema
from dali.engine.constraint.shape import Shape
from dali.engine.encoder import Encoder
from dali.engine.engine import Engine
from dali.engine.loop import Loop
from dali.engine.request import Request
from dali.engine.sampling import FALLBACK, Sampling, SamplingParams, params_of
from dali.engine.sequence import Sequence
from dali.engine.text.answer import constraint_of
from dali.engine.text.ends import eos_of, take_for_control
from dali.engine.text.length import too_long
from dali.engine.text.piece import Piece
from dali.engine.text.prompt import Tool, begun_answer, schema_of
from dali.engine.text.structure import Plain, Structure, calling_structure_of, structure_of, tells_calls
from dali.engine.text.text import Text
from dali.errors import UsageError
from dali.loading.loaded import LoadedModel
from dali.offload.accelerated import AcceleratedExperts
from dali.runtime.executor import Executor

# What a configuration may ask a forward pass for beside logits: nobody reads it, and collecting it watches every layer.
EXTRA_OUTPUTS = ("output_router_logits", "output_hidden_states", "output_attentions")
STEP_TOKENS = 512  # prefill chunk: enough rows for the kernels, short enough to keep others decoding
KNOWN = -1  # of calls: any number, where dali knows in which form the model writes them

Prompt = str | Many[int]


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
        self.defaults = FALLBACK | loaded.sampling
        self.variables: dict[str, Any] = {}  # of the chat template, where a call does not say otherwise
        self.encoder = Encoder(self.tokenizer, self.name)
        self.controls = take_for_control(self.tokenizer)  # tokens that the model's files take for text
        self.eos = eos_of(self.model, self.tokenizer)
        self.grammars = Grammars(self.tokenizer, self.eos)
        self.engine = Engine(self.model, STEP_TOKENS)
        self.loop = Loop(self.engine)

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
        """What the runtime has done so far: lookups by tier, bytes by link, prefetches, seconds, in all and a layer; "converted",
        what reading the model's file lost: "Q6_K to w8" -> relative L2 error of those experts' weights; "converted_linears",
        that of linears; "policy", the named system; "lossy", its lossy parts and what they changed; "draft_accepted" and
        "draft_rejected", tokens guessed; "prefixes", what the prefix cache has and has served; "cache_type", as Engine's."""
        accelerated = self.accelerated
        return self.telemetry.as_dict() | {
            "converted": self.loaded.converted,
            "converted_linears": self.loaded.converted_linears,
            "policy": None if accelerated is None else accelerated.system,
            "lossy": {} if accelerated is None else accelerated.lossy,
            "prefixes": self.engine.prefixes.stats(),
            "cache_type": self.engine.cache_type,
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
        schema: Schema | None = None,
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
        schema: Schema | None = None,
        **sampling: Unpack[Sampling],
    ) -> Iterator[Piece]: ...
    def chat(
        self,
        messages: Many[Message],
        *,
        stream: bool = False,
        tools: Many[Tool] | None = None,
        template: Mapping[str, Any] | None = None,
        schema: Schema | None = None,
        **sampling: Unpack[Sampling],
    ) -> Completion | Iterator[Piece]:
        """Answer a conversation, [{"role": ..., "content": ...}, ...], through the model's own chat template -> Completion;
        `stream`: Pieces of text and of reasoning as they become final. An assistant's message that comes last is continued.

        tools: JSON schemas of what the model may call, or functions with type hints and docstrings. Calls are told apart from the
        text, unless dali does not know the form in which the model writes them.
        template: what the chat template calls its variables, as {"enable_thinking": False}.
        schema: a JSON schema; the text of the answer is JSON that follows it. UsageError where it cannot be held to it.
        """
        shape = None if schema is None else Shape(schema)
        sequence = self.chat_sequence(messages, tools=tools, template=template, shape=shape, **sampling)
        return self.loop.stream(sequence) if stream else self._complete([sequence])[0]

    async def achat(
        self,
        messages: Many[Message],
        *,
        tools: Many[Tool] | None = None,
        template: Mapping[str, Any] | None = None,
        schema: Schema | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncIterator[Piece]:
        """As `chat` with `stream`, for an event loop; the rest as `astream`."""
        shape = None if schema is None else Shape(schema)
        sequence = self.chat_sequence(messages, tools=tools, template=template, shape=shape, **sampling)
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
        variables = {**self.variables, **(template or {})}
        return self.encoder.conversation(plain_messages(messages), tools, variables)

    def chat_sequence(
        self,
        messages: Many[Message],
        *,
        tools: Many[Tool] | None = None,
        template: Mapping[str, Any] | None = None,
        calls: int | None = KNOWN,
        shape: Shape | None = None,
        **sampling: Unpack[Sampling],
    ) -> Sequence:
        """As `sequence`, for a conversation: the answer's text and reasoning are told apart.

        calls: how many calls of `tools` are told apart from the text, None for any number; after so many the answer ends. 0: they
        are text; by default so where their form is not known. shape: what the answer has to be. UsageError: it cannot be that.
        """
        plain = plain_messages(messages)
        # Of answers, templates may leave out the reasoning.
        self._check_texts(message.get("content") for message in plain if message["role"] != "assistant")
        ids = self.chat_prompt(plain, tools, template)
        said = begun_answer(plain)
        if said and shape is not None and shape.asks:
            raise UsageError(
                f"The assistant's message {shorten(said, 40)!r} comes last, and what continues it cannot be held to a schema.",
                "Let the conversation end with another message.",
            )
        if calls == KNOWN:
            calls = None if tools and tells_calls(self.tokenizer) else 0
        if tools and calls != 0:
            schemas = [schema_of(tool) for tool in tools]
            structure = calling_structure_of(self.tokenizer, ids, said, schemas, calls)
        else:
            schemas, structure = [], structure_of(self.tokenizer, ids, said)
        return self._sequence(ids, bool(said), structure, shape, (schemas, calls), **sampling)

    def sequence(self, prompt: Prompt, shape: Shape | None = None, **sampling: Unpack[Sampling]) -> Sequence:
        """A request that is ready to join the engine. shape: what the text that comes has to be. UsageError: no prompt, unknown
        token, no room in the context."""
        if isinstance(prompt, str):
            self._check_texts([prompt])
        try:
            ids = self.encode(prompt) if isinstance(prompt, str) else [index(token) for token in prompt]
        except TypeError as error:
            raise UsageError(
                f"A prompt is text or a list of token ids, not {shorten(repr(prompt), 60)}.",
                "Give one of these; a conversation goes to `chat`.",
            ) from error
        return self._sequence(ids, isinstance(prompt, str), Plain(), shape, **sampling)

    def _sequence(
        self,
        ids: list[int],
        continues: bool,
        structure: Structure,
        shape: Shape | None,
        calling: tuple[Many[dict[str, Any]], int | None] = ((), 0),
        **sampling: Unpack[Sampling],
    ) -> Sequence:
        """continues: what comes is the rest of the prompt's last word, or follows it, in one text. calling: tools whose calls are
        told apart, and how many of them there may be."""
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
        constraint = None
        if shape is not None and shape.asks:
            constraint = constraint_of(self.grammars, self.tokenizer, shape, structure, *calling)
        return Sequence(Request(tuple(ids), limit, params, self.eos, borders), text, constraint)

    def _check_texts(self, texts: Iterable[object]) -> None:
        self.encoder.check(texts, self.ctx_size, self._most)

    def sampling_params(self, **sampling: Unpack[Sampling]) -> SamplingParams:
        """What is given, over the model's own defaults or `params`; None is as good as not given. UsageError: no such parameter,
        or value."""
        return params_of(sampling, self.defaults)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text that is to be continued, after what the tokenizer begins a text with."""
        return self.encoder.plain(text)

    def encode_further(self, text: str) -> list[int]:
        """Token ids of text amid a text, which nothing is put before; what spells a control token is one."""
        return self.encoder.further(text)

    def decode(self, ids: Many[int]) -> str:
        """The text of token ids, control tokens spelt out."""
        return self.encoder.text(ids)

    def _complete(self, sequences: list[Sequence]) -> list[Completion]:
        self.loop.complete(sequences)
        return [completion(sequence) for sequence in sequences]


def _texts(pieces: Generator[Piece, None, None]) -> Iterator[str]:
    with closing(pieces):
        for piece in pieces:
            yield piece.text


def _are_ids(prompts: Many[Any]) -> bool:
    """Whether these are one prompt's token ids, of whatever integer type, and not prompts."""
    return bool(prompts) and not isinstance(prompts[0], str) and hasattr(prompts[0], "__index__")
