"""dali's own store: experts packed once, one aligned record each."""
