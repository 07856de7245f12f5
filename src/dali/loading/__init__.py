"""From what a user calls a model to a dense transformers model whose experts are dali's."""
