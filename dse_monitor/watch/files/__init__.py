"""Which files of a run are checkpoints, whole, new and worth measuring."""
