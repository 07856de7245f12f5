"""DALI: workload-aware offloading for Mixture-of-Experts models on ordinary PCs.

`dali.load(model)` loads a model and returns an `LLM`; `dali.attach(model)` gives a transformers model dali's
experts.
"""

import os
from typing import TYPE_CHECKING, Any

from dali.errors import DaliError, UsageError

if TYPE_CHECKING:
    from dali.llm import LLM, Completion, attach, load

# torch's OpenMP threads otherwise spin for milliseconds after each of its operations, on cores that dali's kernels need: a
# fifth of the decoding speed. OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = ["LLM", "Completion", "DaliError", "UsageError", "attach", "load"]


def __getattr__(name: str) -> Any:
    """The engine is imported when something of it is first asked for: torch and transformers take seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dali import llm

    return getattr(llm, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
