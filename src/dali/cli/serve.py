"""`dali serve`: a model for programs that speak OpenAI's protocol."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Any

from dali.cli.chat.template import read_template
from dali.cli.flags.always import Always
from dali.cli.flags.chat import Template
from dali.cli.flags.explained import EXPLAIN, check_explain, explaining
from dali.cli.flags.kinds import NAMES, TEXT, whole
from dali.cli.flags.option import Kind, flag
from dali.cli.flags.prefixes import Prefixes
from dali.cli.flags.sampling import Sampling
from dali.cli.flags.verb import Verb
from dali.cli.importing import importing
from dali.cli.model import find_model, load_model
from dali.cli.terminal import log, passing_note
from dali.errors import UsageError
from dali.hardware.gpu import check_gpu
from dali.loading.locate import DEFAULT_MODEL
from dali.serve.options import HOST, PARALLEL, PORT, QUEUE, ServeOptions

if TYPE_CHECKING:
    from dali.llm import LLM
    from dali.options import LoadOptions
    from dali.serve.server import Server
    from dali.serve.serving import Serving

GRACE = 5.0  # seconds that answers under way have to end in when the server is stopped
SLICE = 0.5  # seconds after which a signal is seen that did not wake the thread that waits for it


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 2**16:
        raise ValueError
    return port


PORTS = Kind("PORT", "a whole number from 0 to 65535", _port)


@dataclass(frozen=True)
class Settings(Always, Prefixes, Sampling, Template):
    """How an answer is chosen, and the variables of the template, hold where a request does not say otherwise."""

    host: str | None = flag("server", TEXT, f"address to listen on; others need --api-key (default: {HOST})")
    port: int | None = flag("server", PORTS, f"port to listen on; 0 for any that is free (default: {PORT})")
    api_key: str | None = flag("server", TEXT, "what clients have to send as their key")
    alias: tuple[str, ...] | None = flag(
        "server", NAMES, "what clients may call the model, with commas between (default: its name)"
    )
    parallel: int | None = flag("server", whole(1), f"answers under way at once (default: {PARALLEL})")
    queue: int | None = flag(
        "server", whole(0), f"answers that may wait for others; more are refused (default: {QUEUE})"
    )

    explain: str | None = flag(
        "server",
        EXPLAIN,
        "keep the last steps, and say which experts went where, and why: at GET /v1/explain, and when the server stops; into a "
        "FILE, all of it (.json: trace events for ui.perfetto.dev) or a picture of one step (.svg)",
    )

    def _parameters(self) -> dict[str, Any]:
        return super()._parameters() | {"parallel": self.parallel or PARALLEL}

    def serve_options(self) -> ServeOptions:
        """What the flags ask for. UsageError: it cannot be meant."""
        names = ("host", "port", "api_key", "alias", "parallel", "queue")
        given: dict[str, Any] = {name: getattr(self, name) for name in names}
        return ServeOptions(**{name: value for name, value in given.items() if value is not None})


VERB = Verb(
    "serve",
    "Let programs ask a model over HTTP, by the protocol of OpenAI's clients: their base URL is http://127.0.0.1:8000/v1. "
    "MODEL is as for `dali run`. Flags of the answer and of the prompt hold where a request says nothing else.",
    Settings,
    headings=("server", "model", "accelerator", "answer", "prompt"),
    words="[MODEL]",
)


def main(settings: Settings) -> int:
    options, load = checked(settings)
    with importing():
        from dali.serve.app import make_app
        from dali.serve.server import Server
        from dali.serve.serving import Serving

    serving, stop = Serving(options), Event()
    server = Server(make_app(serving), options)
    server.start(stop.set)  # /health tells from here on that the model is being loaded
    try:
        llm = load()
        logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of clients that leave
        serve(llm, serving, server, stop, settings.ram, settings.explain)
    except BaseException:
        server.stop(at_once=True)
        raise
    return 0


def checked(settings: Settings) -> tuple[ServeOptions, Callable[[], LLM]]:
    """How to serve, and what loads the model. UsageError or DaliError: what can be refused before anything is loaded."""
    if len(settings.words) > 1:
        raise UsageError(
            f"`dali serve` takes one MODEL, not {len(settings.words)} words.",
            "Serve each on a port of its own.",
        )
    model = settings.words[0] if settings.words else settings.model or DEFAULT_MODEL
    options, load_options = settings.serve_options(), settings.load_options()
    if settings.device is not None and settings.device.startswith("cuda"):
        check_gpu(settings.device)
    if settings.explain is not None:
        check_explain(settings.explain)
    template = None if settings.chat_template is None else read_template(settings.chat_template)
    return options, lambda: _load(model, settings, load_options, template)


def _load(model: str, settings: Settings, options: LoadOptions, template: str | None) -> LLM:
    """The model, with what holds where requests say nothing."""
    llm = load_model(model, find_model(model, settings), options, template=template)
    llm.defaults |= {name: value for name, value in settings.sampling().items() if value is not None}
    if settings.chat_template_kwargs:
        llm.variables = dict(settings.chat_template_kwargs)
        llm.chat_prompt([{"role": "user", "content": "Hello"}])  # refuses what the template does not have
    return llm


def serve(
    llm: LLM, serving: Serving, server: Server, stop: Event, ram: int | None, explain: str | None = None
) -> None:
    """Until `stop` is set, or SIGINT or SIGTERM comes; a second one ends it at once. `explain`: as --explain."""
    from dali.engine.text.structure import generic_tools
    from dali.serve.memory import limit_states, side_by_side
    from dali.serve.service import Service

    fit = side_by_side(llm, limit_states(llm, ram))
    if fit < serving.options.parallel:
        answers = "1 answer" if fit == 1 else f"{fit} answers"
        lower = "--ctx-size" if llm.executor is None else "--ctx-size or --vram"
        log.info(
            f"The memory that is left holds keys and values ({llm.engine.cache_type}) of {answers} at once that may take the "
            f"whole context of {llm.ctx_size} tokens; others wait for them. A lower {lower} lets more answer at once, as does "
            "max_tokens in requests."
        )
    if generic_tools(llm.tokenizer):
        log.info(
            f"The chat template of {llm.name} takes no tools. Requests that offer some are answered all the same: dali tells "
            "the model of them in words, for which it was not trained."
        )
    with _set_by_signals(stop), explaining(llm, explain) as explained:
        service = Service(llm, serving.options.parallel, serving.options.queue)
        service.explained = explained
        serving.open(service)
        passing_note()
        log.info(
            f"dali serves {serving.name} at {server.url} (base URL for OpenAI's clients: {server.url}/v1). Ctrl-C stops it."
        )
        # In slices: a signal that the system hands to another thread wakes nobody here, and is seen when the next slice begins.
        while not stop.wait(SLICE):
            pass
        if service.running:
            log.info(f"Stopping; answers under way have {GRACE:.0f} seconds to end.")
        service.stop(GRACE)
        server.stop()


@contextmanager
def _set_by_signals(stop: Event) -> Iterator[None]:
    def handle(signum: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as a shell wants it for what it runs in the background
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
