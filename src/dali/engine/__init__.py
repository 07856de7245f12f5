"""The engine: a transformers model whose experts are dali's, stepped over one flattened row of live tokens."""
