"""`dali run`: one prompt and its answer, or a chat."""

from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from dali import systems
from dali.cli.chat.conversation import Conversation, check_prompt
from dali.cli.chat.loop import chat
from dali.cli.chat.template import read_template
from dali.cli.flags.always import Always
from dali.cli.flags.chat import Chat, Template
from dali.cli.flags.explained import EXPLAIN, check_explain, explaining
from dali.cli.flags.option import SWITCH, flag, options_of
from dali.cli.flags.prefixes import Prefixes
from dali.cli.flags.verb import Verb, refuse_unheeded
from dali.cli.importing import importing
from dali.cli.model import find_model, load_model
from dali.cli.plain_text import plain_text
from dali.cli.terminal import DIM, log, styled
from dali.errors import DaliError, UsageError
from dali.hardware import own, profile
from dali.hardware.gpu import check_gpu
from dali.loading.locate import DEFAULT_MODEL
from dali.store.cache import cache_root


@dataclass(frozen=True)
class Settings(Always, Prefixes, Chat):
    list_devices: bool = flag("accelerator", SWITCH, "say what --device can be here, and leave")
    list_policies: bool = flag("accelerator", SWITCH, "say what --system can be, and leave")
    explain: str | None = flag(
        "experts",
        EXPLAIN,
        "say at the end which experts went where, why, and how long it took; into a FILE, all of it (.json: trace events for "
        "ui.perfetto.dev) or a picture of one step (.svg)",
    )


VERB = Verb(
    "run",
    "Ask a model, or chat with it when no PROMPT is given. MODEL is a directory, a GGUF file, an org/name "
    "on the Hugging Face hub (org/name:QUANT for a GGUF file there, as in org/name:Q4_K_M), or a name that `dali list` shows; "
    "left out, the small model that ships inside answers. The PROMPT may also come on stdin, all of whose lines are one prompt; "
    "it is not read where a PROMPT is given.",
    Settings,
    headings=("answer", "prompt", "model", "accelerator", "experts"),
    words="[MODEL] [PROMPT]",
)


def main(settings: Settings) -> int:
    if settings.list_devices:
        print("\n".join(_devices()))
        return 0
    if settings.list_policies:
        print("\n".join(_systems()))
        return 0
    if settings.raw:
        about = {"system_prompt", *(option.key for option in options_of(Template))}
        refuse_unheeded(settings, lambda key: key in about, "--raw gives the prompt to the model as it is")
    model, prompt = _model_and_prompt(settings.words, settings.model or DEFAULT_MODEL)
    if settings.device is not None and settings.device.startswith("cuda"):
        check_gpu(settings.device)
    options = settings.load_options()
    if settings.explain is not None:
        check_explain(settings.explain)
    directory = _find(model, settings)  # first: a lone word that is no model gets its hint, whatever stdin is
    if prompt is None and not (sys.stdin and sys.stdin.isatty()):
        prompt = _read_stdin()
    if prompt is not None:
        check_prompt(prompt)  # before anything that takes long
    template = None if settings.chat_template is None else read_template(settings.chat_template)
    llm = load_model(model, directory, options, chat=not settings.raw, template=template)
    conversation = Conversation(llm, settings)
    with explaining(llm, settings.explain):
        if prompt is None:
            chat(conversation, model, settings.verbose)
        else:
            answer = conversation.answer_to(prompt)
            answer.stream()
            log.info(styled(answer.summary(settings.verbose), DIM))
    return 0


def _devices() -> list[str]:
    """What --device can be: real devices here, and the profiles a simulated one can have."""
    try:
        check_gpu("cuda")
    except DaliError:
        found = []
    else:
        with importing():
            from dali.devices.cuda import device_names
        found = device_names()
    profiles = {name: profile.load(name) for name in profile.known()}
    mine = own.find(log.warning)
    if mine is not None and mine.has_accelerator:
        profiles[profile.OWN] = mine
    simulated = [f"{'sim:' + name:<20}  {each.description}" for name, each in profiles.items()]
    return ["cpu", *found, *simulated]


def _systems() -> list[str]:
    """What --system can be: systems and their variants, and what --lossy turns on."""
    lines = []
    for name in [*systems.names(variants=True), *systems.installed()]:
        try:
            system = systems.get(name)
        except DaliError as error:  # another package's, which must not hide the others
            lines.append(f"{name:<28}  cannot be used: {error.problem}")
            continue
        lossy = f"  (--lossy: {', '.join(system.lossy)})" if system.lossy else ""
        lines.append(f"{name:<28}  {system.title}{lossy}")
    return lines


def _model_and_prompt(words: list[str], default: str) -> tuple[str, str | None]:
    """One word alone is a model, unless it can only be a prompt, for the `default` one."""
    if len(words) > 2:
        problem = f"`dali run` takes a MODEL and a PROMPT, not {len(words)} words."
        raise UsageError(problem, "Put the prompt in quotes.")
    if len(words) == 2:
        return words[0], words[1]
    if words and _may_be_model(words[0]):
        return words[0], None
    return default, words[0] if words else None


def _may_be_model(word: str) -> bool:
    if word.split() == [word] or word.endswith(".gguf"):
        return True
    cached = cache_root() / "models" / word / "config.json"
    return os.path.isdir(os.path.expanduser(word)) or os.path.isfile(cached)


def _read_stdin() -> str:
    """All of stdin, without the newline that ends its last line."""
    given = sys.stdin.buffer.read() if sys.stdin else b""
    try:
        return plain_text(given).removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"The prompt on stdin is not UTF-8: byte {given[error.start]:#04x} at offset {error.start}.",
            "Convert it first, for example with iconv.",
        ) from error


def _find(model: str, settings: Settings) -> Path:
    try:
        return find_model(model, settings)
    except UsageError as error:
        alone = [*settings.words] == [model]  # and not the default, for a prompt
        if alone and re.fullmatch(r"\w+\W?", model):  # it may have been meant as a prompt
            default = DEFAULT_MODEL if settings.model in (None, model) else settings.model
            ask = f"dali run {default} {shlex.quote(model)}"
            raise UsageError(error.problem, f"{error.fix} If it was a question: `{ask}`.") from error
        raise
