"""Memory that runs out amid a step, as users are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dali.errors import DaliError, parameter, reason

# Of torch's errors that have no class of their own: the CPU's allocator, and libraries that want memory themselves.
SIGNS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


@contextmanager
def memory_errors(model: Any) -> Iterator[None]:
    """DaliError where memory runs out while `model` computes."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _ran_out(error):
            raise
        on_cpu = model.device.type == "cpu"
        lower = "" if on_cpu else f"lower {parameter('vram')} or {parameter('ctx_size')}, "
        # Without its traceback, whose frames hold the step's tensors as long as somebody holds the error.
        raise DaliError(
            f"The memory of {model.device} ran out amid a step ({reason(error)}).",
            f"Give fewer or shorter prompts at once, {lower}or close other programs that use memory.",
        ) from error.with_traceback(None)


def _ran_out(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        sign in str(error) for sign in SIGNS
    )
