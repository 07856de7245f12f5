"""Memory that runs out amid a step, as users are told."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

from dali.errors import DaliError, parameter, reason

# Of torch's errors that have no class of their own: the CPU's allocator, and libraries that want memory themselves.
SIGNS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


class MemoryErrors:
    """DaliError where memory runs out while `model` computes.

    No frame that the error leaves behind holds what was computed: whoever keeps the error would keep that memory. So this is not
    contextlib's, whose frames do.
    """

    def __init__(self, model: Any, give_up: Callable[[], None]) -> None:
        """give_up: frees what can be done without, for the next try."""
        self._model, self._give_up = model, give_up

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del traceback
        if error is None or not ran_out(error):
            return
        self._give_up()
        place = self._model.device
        lower = "" if place.type == "cpu" else f"lower {parameter('vram')} or {parameter('ctx_size')}, "
        raise DaliError(
            f"The memory of {place} ran out amid a step ({reason(error)}).",
            f"Give fewer or shorter prompts at once, {lower}or close other programs that use memory.",
        ) from error.with_traceback(None)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there is no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
