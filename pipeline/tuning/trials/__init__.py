"""Trials: one is trained and scored; they run in this process, or as tasks of a cluster."""
