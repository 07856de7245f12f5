"""What a model would do on this machine, told from headers alone, and what is wrong with the machine itself. Needs no torch."""
