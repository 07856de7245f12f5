"""DALI: workload-aware offloading for Mixture-of-Experts models on ordinary PCs.

`dali.load(model)` loads a model and returns an `LLM`; `dali.attach(model)` gives a transformers model dali's
experts.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dali.errors import DaliError, UsageError

if TYPE_CHECKING:
    from dali.engine.completion import Completion
    from dali.engine.sampling import SamplingParams
    from dali.engine.text.piece import Piece
    from dali.entry import attach, load
    from dali.llm import LLM
    from dali.options import LoadOptions

# torch's OpenMP threads otherwise spin for milliseconds after each of its operations, on cores that dali's kernels need: a
# fifth of the decoding speed. OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "Completion",
    "DaliError",
    "LoadOptions",
    "Piece",
    "SamplingParams",
    "UsageError",
    "attach",
    "load",
]

_HOMES = {
    "LLM": "dali.llm",
    "Completion": "dali.llm",
    "LoadOptions": "dali.options",
    "Piece": "dali.engine.text.piece",
    "SamplingParams": "dali.engine.sampling",
    "attach": "dali.entry",
    "load": "dali.entry",
}


def __getattr__(name: str) -> Any:
    """What takes seconds to import, as it brings torch and transformers, is imported when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
