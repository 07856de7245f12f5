"""The protocol of Anthropic's clients, as Claude Code speaks it."""
