"""The flags: what one is, what a verb makes of them, and those that several verbs share."""
