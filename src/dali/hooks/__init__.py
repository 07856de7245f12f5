"""Where dali takes part in a transformers model: experts, attention, rotary embeddings, shared experts."""
