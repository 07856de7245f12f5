"""`dali trace`: where a model's tokens are routed, recorded while it answers."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from dali.cli.conversation import check_prompt
from dali.cli.model import MODEL_FLAGS, find_model, load_model
from dali.cli.options import FILE, Option, whole
from dali.cli.settings import Verb
from dali.cli.terminal import log, meter
from dali.errors import UsageError
from dali.hardware.memory import size
from dali.loading.locate import DEFAULT_MODEL

if TYPE_CHECKING:
    from dali.replay.traces.trace import Trace

TOKENS = 128  # of an answer, unless told otherwise

VERB = Verb(
    "trace",
    "Answer prompts on the CPU and record which experts each token was routed to, with weights and scores, for `dali simulate`. "
    "MODEL is as for `dali run`. Prompts come one a line, from a file or on stdin. With --import, what another tool recorded "
    "is made such a trace instead; MODEL is then only its name.",
    {
        "trace": ("output", "prompts", "hidden", "batch"),
        "import": ("import", "experts"),
        "answer": ("predict", "temp", "top-k", "top-p", "min-p", "seed", "raw"),
        "model": MODEL_FLAGS,
    },
    words="[MODEL] -o FILE.npz",
    own=(
        Option("predict", whole(1), f"most tokens to answer with (default: {TOKENS})", "-n"),
        Option("import", FILE, "routing to convert: CSV, JSON lines, or a tracer's (docs/TRACES.md)"),
        Option("experts", whole(1), "experts a layer, where the imported file does not say"),
    ),
)


def main(settings: SimpleNamespace) -> int:
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
    if getattr(settings, "import") is not None:
        return _convert(settings, output)
    if settings.experts is not None:
        raise UsageError(
            "--experts is of an imported file; there is none.", "Give --import FILE, or leave it out."
        )
    model = settings.words[0] if settings.words else DEFAULT_MODEL
    directory = find_model(model, settings)
    prompts = _prompts(settings.prompts)

    llm = load_model(model, directory, settings, chat=not settings.raw)
    from dali.measure.recorder import record
    from dali.replay.traces import trace

    recorded = record(
        llm,
        prompts
        if settings.raw
        else [llm.chat_prompt([{"role": "user", "content": prompt}]) for prompt in prompts],
        (settings.batch or (1,))[0],
        settings.hidden,
        meter,
        max_tokens=settings.predict or TOKENS,
        temperature=settings.temp,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        seed=settings.seed,
    )
    trace.write(output, recorded)
    _report(recorded, output)
    return 0


def _convert(settings: SimpleNamespace, output: Path) -> int:
    """Make a trace of what another tool recorded."""
    for name in ("prompts", "hidden", "batch", "predict"):
        if getattr(settings, name):
            raise UsageError(f"--import records nothing, so no --{name}.", "Leave it out.")
    from dali.replay.traces import trace
    from dali.replay.traces.foreign import convert

    found, notes = convert(
        getattr(settings, "import"), settings.words[0] if settings.words else None, settings.experts
    )
    trace.write(output, found)
    for note in notes:
        log.info(note)
    _report(found, output)
    return 0


def _report(recorded: Trace, output: Path) -> None:
    """Say what was written."""
    answers = int(recorded.phase.sum())  # 1 is a generated token
    sequences = "1 sequence" if recorded.sequences == 1 else f"{recorded.sequences} sequences"
    log.info(
        f"{output}: {sequences}, {recorded.tokens - answers} prompt + {answers} answer tokens, "
        f"{recorded.layers} layers, {size(output.stat().st_size)}"
    )


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
