"""GGUF models: their configuration, tokenizer and dense weights in transformers' terms, and loading them."""
