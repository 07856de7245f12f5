"""OpenAI's responses, as its newer clients and Codex ask for them."""
