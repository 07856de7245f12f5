"""The page for people: a chat, and the machine beside it."""
