"""Calls that type checkers must know: `make types` checks this file, and nothing runs it. Each ignored error must be one."""

from __future__ import annotations

from collections.abc import Iterator

import dali

HELLO = [{"role": "user", "content": "Hello"}]


async def calls(llm: dali.LLM) -> None:
    one: dali.Completion = llm.generate("Hi", temperature=0, stop="x")
    several: list[dali.Completion] = llm.generate(["Hi", "Ho"], top_k=3)
    of_ids: dali.Completion = llm.generate([1, 2], params=dali.SamplingParams(top_k=3))
    text: Iterator[str] = llm.stream("Hi", seed=None)
    answer: dali.Completion = llm.chat(HELLO, template={"enable_thinking": False})
    shaped: dali.Completion = llm.chat(HELLO, schema={"type": "object"})
    pieces: Iterator[dali.Piece] = llm.chat(HELLO, stream=True)
    async for piece in llm.achat(HELLO):
        print(one, several, of_ids, text, answer, shaped, pieces, piece.text, piece.reasoning)
    llm.generate("Hi", temprature=1)  # type: ignore[call-overload]
    llm.generate("Hi", top_k="3")  # type: ignore[call-overload]
    llm.chat(HELLO, stream=True).text  # type: ignore[attr-defined]  # noqa: B018
