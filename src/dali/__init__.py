"""DALI: workload-aware offloading for Mixture-of-Experts models on ordinary PCs.

`dali.load(model)` loads a model and returns an `LLM`; `dali.attach(model)` gives a transformers model dali's experts.
"""

from dali.engine.llm import LLM, Completion, attach, load
from dali.errors import DaliError, UsageError

__version__ = "0.1.0"
__all__ = ["LLM", "Completion", "DaliError", "UsageError", "attach", "load"]
