"""The interactive chat of `dali run`."""

from __future__ import annotations

import re
import sys
from contextlib import suppress

from dali.cli.chat.conversation import Conversation
from dali.cli.flags.option import as_flag
from dali.cli.interrupt import interruptible
from dali.cli.terminal import DIM, log, passing_note, report, styled
from dali.errors import UsageError

try:
    import readline  # gives input() line editing and a history
except ImportError:
    readline = None  # type: ignore[assignment]

COMMANDS = {
    "/clear": "forget the conversation",
    "/exit": "leave, as Ctrl-D does",
    "/help": "this; and Ctrl-C stops an answer",
}


def chat(conversation: Conversation, name: str) -> None:
    """Ask for lines and answer them until the user leaves."""
    passing_note()
    llm = conversation.llm
    log.info(f"{name}: {llm.format_name} experts, {llm.ctx_size} tokens of context. /help for help.")
    leaving = False
    while True:
        try:
            with interruptible():
                line = _read_line()
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)
            if readline and readline.get_line_buffer():  # it was the line that should go
                continue
            if leaving:
                return
            leaving = True
            log.info("Ctrl-C again, Ctrl-D or /exit leaves.")
            continue
        except UnicodeDecodeError as error:
            report(UsageError(f"That line is not UTF-8 ({error.reason}).", "Check the terminal's encoding."))
            continue
        leaving = False
        if line == "/exit":
            return
        if re.fullmatch(r"/[a-z]+", line):
            _command(line, conversation)
        elif line:
            with suppress(KeyboardInterrupt), interruptible():  # it stops the answer, not the program
                _answer(line, conversation)


def _read_line() -> str:
    if sys.stdout.isatty():
        return input("> ").strip()
    print("> ", end="", file=sys.stderr, flush=True)  # stdout is for answers
    return input().strip()


def _command(line: str, conversation: Conversation) -> None:
    if line == "/clear":
        conversation.clear()
        log.info("The conversation is forgotten.")
    elif line == "/help":
        log.info("\n".join(f"{name:<8} {does}" for name, does in COMMANDS.items()))
    else:
        report(UsageError(f"There is no command {line!r}.", f"Choose one of {', '.join(COMMANDS)}."))


def _answer(line: str, conversation: Conversation) -> None:
    try:
        answer = conversation.answer_to(line)
    except UsageError as error:
        problem, fix = error.told(as_flag)
        report(UsageError(problem, f"{fix} /clear starts over."))
        return
    try:
        answer.stream()
    finally:
        conversation.remember(line, answer)
        log.info(styled(answer.summary(), DIM) + "\n")
        if answer.filled_context:
            llm = conversation.llm
            most = llm.model.config.get_text_config().max_position_embeddings
            larger = f", and --ctx-size up to {most} holds more" if llm.ctx_size < most else ""
            log.info(f"The context of {llm.ctx_size} tokens is full: /clear starts over{larger}.")
