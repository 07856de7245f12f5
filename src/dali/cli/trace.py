"""`dali trace`: where a model's tokens are routed, recorded while it answers."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from dali.cli.chat.conversation import check_prompt
from dali.cli.flags.always import Always
from dali.cli.flags.kinds import COUNTS, FILE, whole
from dali.cli.flags.model import Model
from dali.cli.flags.option import SWITCH, flag
from dali.cli.flags.sampling import Sampling
from dali.cli.flags.verb import Verb
from dali.cli.model import find_model, load_model
from dali.cli.terminal import log, meter
from dali.errors import UsageError
from dali.loading.locate import DEFAULT_MODEL
from dali.units import size

TOKENS = 128  # of an answer, unless told otherwise


@dataclass(frozen=True)
class Settings(Always, Model, Sampling):
    output: str | None = flag("trace", FILE, "the trace to write", "-o")
    prompts: str | None = flag("trace", FILE, "prompts, one a line (default: stdin)")
    hidden: bool = flag("trace", SWITCH, "record gate inputs, embeddings and predictions too")
    batch: tuple[int, ...] | None = flag("trace", COUNTS, "sequences side by side in a step (default: 1)")
    predict: int | None = flag("answer", whole(1), f"most tokens to answer with (default: {TOKENS})", "-n")
    raw: bool = flag("answer", SWITCH, "give the prompt to the model as it is, without a chat template")


VERB = Verb(
    "trace",
    "Answer prompts on the CPU and record which experts each token was routed to, with weights and scores, for `dali simulate`. "
    "MODEL is as for `dali run`. Prompts come one a line, from a file or on stdin.",
    Settings,
    headings=("trace", "answer", "model"),
    words="[MODEL] -o FILE.npz",
)


def main(settings: Settings) -> int:
    if len(settings.words) > 1:
        raise UsageError(
            f"`dali trace` takes one MODEL, not {len(settings.words)} words.",
            "Give prompts by --prompts, or on stdin.",
        )
    if settings.output is None:
        raise UsageError("`dali trace` needs a file to write.", "Give one: -o FILE.npz.")
    if len(settings.batch or (1,)) > 1:
        raise UsageError("`dali trace` records one batch size at a time.", "Give one number to --batch.")
    output = Path(settings.output)
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise UsageError(
            f"{settings.output!r} is no file that can be written.", "Name one in a writable folder."
        )
    model = settings.words[0] if settings.words else DEFAULT_MODEL
    options = settings.load_options()
    directory = find_model(model, settings)
    prompts = _prompts(settings.prompts)

    llm = load_model(model, directory, options, chat=not settings.raw)
    from dali.measure.recorder import record
    from dali.replay import trace

    recorded = record(
        llm,
        prompts
        if settings.raw
        else [llm.chat_prompt([{"role": "user", "content": prompt}]) for prompt in prompts],
        (settings.batch or (1,))[0],
        settings.hidden,
        meter,
        **settings.sampling() | {"max_tokens": settings.predict or TOKENS},
    )
    trace.write(output, recorded)
    answers = int((recorded.phase == trace.DECODE).sum())
    sequences = "1 sequence" if recorded.sequences == 1 else f"{recorded.sequences} sequences"
    log.info(
        f"{output}: {sequences}, {recorded.tokens - answers} prompt + {answers} answer tokens, "
        f"{recorded.layers} layers, {size(output.stat().st_size)}"
    )
    return 0


def _prompts(file: str | None) -> list[str]:
    """The lines of a file or of stdin that are not blank. UsageError: there are none, or they are no text."""
    origin = "stdin" if file is None else repr(file)
    if file is None and sys.stdin and sys.stdin.isatty():
        log.info("Prompts, one a line; Ctrl-D ends them.")
    try:
        given = Path(file).read_bytes() if file is not None else sys.stdin.buffer.read() if sys.stdin else b""
        lines = given.decode().splitlines()
    except OSError as error:
        raise UsageError(
            f"Cannot read the prompts in {origin} ({error.strerror}).", "Give a text file, one prompt a line."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"The prompts in {origin} are not UTF-8 (offset {error.start}).",
            "Convert them first, for example with iconv.",
        ) from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UsageError(f"There is no prompt in {origin}.", "Give at least one, one a line.")
    for prompt in prompts:
        check_prompt(prompt)
    return prompts
