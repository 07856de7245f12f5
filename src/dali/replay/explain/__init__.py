"""What a run or a replay did with each expert, and why: as a table, a trace of events and a picture."""
