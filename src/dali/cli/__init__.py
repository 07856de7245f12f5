"""The command line: one module a verb. Answers and data go to stdout, all else to stderr."""
