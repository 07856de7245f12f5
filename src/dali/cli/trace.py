"""`dali trace`: where a model's tokens are routed, recorded while it answers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dali.cli.chat.conversation import check_prompt
from dali.cli.flags.accelerator import Accelerator
from dali.cli.flags.always import Always
from dali.cli.flags.kinds import COUNTS, FILE, whole
from dali.cli.flags.option import SWITCH, flag, options_of
from dali.cli.flags.sampling import Sampling
from dali.cli.flags.verb import Verb, refuse_unheeded
from dali.cli.flags.written import check_suffix, check_written, write_whole
from dali.cli.model import find_model, load_model
from dali.cli.plain_text import plain_text
from dali.cli.terminal import log, meter
from dali.errors import UsageError
from dali.loading.locate import DEFAULT_MODEL
from dali.units import size

if TYPE_CHECKING:
    from dali.replay.traces.trace import Trace

PLOTS = {".html": "a page with plots"}
TOKENS = 128  # of an answer, unless told otherwise


@dataclass(frozen=True)
class Settings(Always, Accelerator, Sampling):
    output: str | None = flag("trace", FILE, "the trace to write", "-o", variable="DALI_TRACE_OUTPUT")
    prompts: str | None = flag("trace", FILE, "prompts, one a line (default: stdin)")
    plot: str | None = flag("trace", FILE, "draw the routing, and what caches make of it, into an .html file")
    hidden: bool = flag("trace", SWITCH, "record gate inputs, embeddings and predictions too")
    batch: tuple[int, ...] | None = flag("trace", COUNTS, "sequences side by side in a step (default: 1)")
    import_: str | None = flag(
        "import", FILE, "routing to convert: CSV, JSON lines, or a tracer's (docs/TRACES.md)"
    )
    experts: int | None = flag("import", whole(1), "experts a layer, where the imported file does not say")
    predict: int | None = flag("answer", whole(1), f"most tokens to answer with (default: {TOKENS})", "-n")
    raw: bool = flag("answer", SWITCH, "give the prompt to the model as it is, without a chat template")

    def _parameters(self) -> dict[str, Any]:
        return super()._parameters() | {"parallel": max(self.batch or (1,))}


VERB = Verb(
    "trace",
    "Answer prompts and record which experts each token was routed to, with weights and scores, for `dali simulate`. "
    "MODEL is as for `dali run`. Prompts come one a line, from a file or on stdin. With --import, what another tool recorded "
    "is made such a trace instead; MODEL is then only its name.",
    Settings,
    headings=("trace", "import", "answer", "model", "accelerator"),
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
    check_written(settings.output)
    if settings.plot is not None:
        check_suffix(settings.plot, "plot", PLOTS)
    if settings.import_ is not None:
        return _convert(settings, settings.import_, output)
    if settings.experts is not None:
        raise UsageError(
            "--experts is of an imported file; there is none.", "Give --import FILE, or leave it out."
        )
    model = settings.words[0] if settings.words else settings.model or DEFAULT_MODEL
    options = settings.load_options()
    directory = find_model(model, settings)
    prompts = _prompts(settings.prompts)

    llm = load_model(model, directory, options, chat=not settings.raw)
    if options.device_kind == "cuda":
        log.info(
            "For a trace, plans for the GPU are made in Python, not in compiled code: steps take longer."
        )
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
        **settings.sampling() | {"max_tokens": settings.predict or TOKENS},
    )
    trace.write(output, recorded)
    _report(recorded, output, settings.plot)
    return 0


def _convert(settings: Settings, foreign: str, output: Path) -> int:
    """Make a trace of what another tool recorded."""
    heeded = {"output", "plot", "import_", "experts", *(option.key for option in options_of(Always))}
    refuse_unheeded(settings, lambda key: key not in heeded, "--import records nothing")
    from dali.replay.traces import trace
    from dali.replay.traces.convert import convert

    found, notes = convert(foreign, settings.words[0] if settings.words else None, settings.experts)
    trace.write(output, found)
    for note in notes:
        log.info(note)
    _report(found, output, settings.plot)
    return 0


def _report(recorded: Trace, output: Path, plot: str | None) -> None:
    """Say what was written, and draw it."""
    answers = int(recorded.phase.sum())  # 1 is a generated token
    sequences = "1 sequence" if recorded.sequences == 1 else f"{recorded.sequences} sequences"
    log.info(
        f"{output}: {sequences}, {recorded.tokens - answers} prompt + {answers} answer tokens, "
        f"{recorded.layers} layers, {size(output.stat().st_size)}"
    )
    if plot is not None:
        from dali.replay.report import routing

        write_whole(plot, routing.page(recorded))
        log.info(f"{plot}: {PLOTS['.html']}")


def _prompts(file: str | None) -> list[str]:
    """The lines of a file or of stdin that are not blank. UsageError: there are none, or they are no text."""
    origin = "stdin" if file is None else repr(file)
    if file is None and sys.stdin and sys.stdin.isatty():
        log.info("Prompts, one a line; Ctrl-D ends them.")
    try:
        given = Path(file).read_bytes() if file is not None else sys.stdin.buffer.read() if sys.stdin else b""
        lines = plain_text(given).splitlines()
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
