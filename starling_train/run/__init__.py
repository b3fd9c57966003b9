"""One run on disk and in the system: directory, state, checkpoints, records, signals, processes."""
