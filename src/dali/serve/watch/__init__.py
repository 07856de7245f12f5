"""What whoever watches a server is told: its requests, and what the machine did for them."""
