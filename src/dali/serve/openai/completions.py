"""/v1/completions: texts that are continued."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dali.serve.generation.ask import Ask
from dali.serve.generation.events import Answer, Delta, Text
from dali.serve.http.body import read_fields
from dali.serve.http.errors import invalid
from dali.serve.http.fields import Fields
from dali.serve.openai.logprobs import completion_logprobs
from dali.serve.openai.reply import Form, reply
from dali.serve.openai.sampling import choices_of, sampling_of
from dali.serve.openai.shape import shape_of
from dali.serve.serving import serving

if TYPE_CHECKING:
    from dali.llm import LLM, Prompt

MOST_TOKENS = 16  # unless a request says how many: OpenAI's own default
MOST_PROMPTS = 32
MOST_TOP = 20  # likeliest tokens a token


async def completions(request: Request) -> Response:
    host = serving(request)
    fields = await read_fields(request)
    host.check_model(fields)
    ask = ask_of(fields, host.llm)
    return await reply(request, host, ask, Form.of(fields), TextChoices(host.llm, ask))


def ask_of(fields: Fields, llm: LLM) -> Ask:
    """ApiError: what cannot be meant, and what is not supported, by name."""
    n = choices_of(fields)
    fields.refuse("echo", "the answer is without its prompt.")
    fields.refuse("suffix", "a text is continued at its end alone.")
    fields.refuse("best_of", "answers are not compared; ask for several with n.", n)
    sampling = sampling_of(fields, llm)
    sampling["max_tokens"] = fields.whole("max_tokens", 1) or llm.defaults.get("max_tokens") or MOST_TOKENS
    sampling["logprobs"] = fields.whole("logprobs", 0, MOST_TOP)
    return Ask(prompts=_prompts(fields, llm), shape=shape_of(fields), sampling=sampling, n=n)


def _prompts(fields: Fields, llm: LLM) -> list[Prompt]:
    """Texts or token ids, one or several."""
    given = fields.any("prompt")
    several = isinstance(given, list) and bool(given) and all(isinstance(one, str | list) for one in given)
    prompts = given if several else [given]
    if len(prompts) > MOST_PROMPTS:
        raise invalid(f"There are {len(prompts)} prompts, and {MOST_PROMPTS} may be.", "prompt")
    return [_prompt(fields, llm, prompt) for prompt in prompts]


def _prompt(fields: Fields, llm: LLM, prompt: Any) -> Prompt:
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return prompt
    if prompt in (None, ""):  # as OpenAI has it: any document may begin
        begins = [llm.tokenizer.bos_token_id, llm.tokenizer.eos_token_id]
        found = [token for token in begins if token is not None]
        if found:
            return found[:1]
    if isinstance(prompt, str) and prompt:
        return prompt
    raise fields.wrong("prompt", "a string, an array of token ids, or an array of these")


class TextChoices:
    """Texts; a reply.Choices."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, llm: LLM, ask: Ask) -> None:
        self._tokenizer = llm.tokenizer
        self._wants_logprobs = ask.sampling.get("logprobs") is not None
        self._letters = [0] * ask.choices  # of the tokens told so far

    def opening(self, choice: int) -> list[dict[str, Any]]:
        return []

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        text = "".join(part.text for part in delta.parts if isinstance(part, Text))
        chunks = []
        if text or delta.logprobs:
            found = None
            if delta.logprobs:
                found = completion_logprobs(self._tokenizer, delta.logprobs, self._letters[delta.choice])
                self._letters[delta.choice] += sum(map(len, found["tokens"]))
            chunks.append(_choice(delta.choice, text, found))
        if delta.finish is not None:
            chunks.append(_choice(delta.choice, "", None, delta.finish.reason))
        return chunks

    def whole(self, choice: int, answer: Answer) -> dict[str, Any]:
        found = completion_logprobs(self._tokenizer, answer.logprobs, 0) if self._wants_logprobs else None
        return _choice(choice, answer.text, found, answer.finish.reason)


def _choice(
    choice: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


ROUTES = [Route(path, completions, methods=["POST"]) for path in ("/v1/completions", "/completions")]
