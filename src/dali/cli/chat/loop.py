"""The interactive chat of `dali run`."""

from __future__ import annotations

import sys
from contextlib import suppress

from dali.cli.chat.commands import is_command, run_command
from dali.cli.chat.conversation import Conversation
from dali.cli.chat.keyboard import Keyboard
from dali.cli.interrupt import interruptible
from dali.cli.terminal import DIM, log, passing_note, report, styled
from dali.errors import DaliError, UsageError


def chat(conversation: Conversation, name: str, verbose: bool = False) -> None:
    """Ask for messages and answer them until the user leaves."""
    passing_note()
    llm = conversation.llm
    log.info(f"{name}: {llm.format_name} experts, {llm.ctx_size} tokens of context. /help for help.")
    keyboard = Keyboard()
    leaving = False
    while True:
        try:
            with interruptible():
                text = keyboard.read()
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)
            if keyboard.has_begun():  # it was the line that should go
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
        try:
            if is_command(text):
                if not run_command(text, conversation):
                    return
            elif text:
                with suppress(KeyboardInterrupt), interruptible():  # it stops the answer, not the program
                    _answer(text, conversation, verbose)
        except DaliError as error:
            report(error)


def _answer(text: str, conversation: Conversation, verbose: bool) -> None:
    answer = conversation.answer_to(text)
    try:
        answer.stream()
    finally:
        conversation.remember(text, answer)
        log.info(styled(answer.summary(verbose), DIM) + "\n")
        if answer.filled_context:
            llm = conversation.llm
            most = llm.model.config.get_text_config().max_position_embeddings
            larger = f"; --ctx-size up to {most} holds more" if llm.ctx_size < most else ""
            log.info(f"The answer ends where the context of {llm.ctx_size} tokens is full{larger}.")
