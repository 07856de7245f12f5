"""One file a stage: `run(result)` measures and writes what it finds."""
