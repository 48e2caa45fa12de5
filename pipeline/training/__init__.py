"""Optimizing the open blocks on the outputs of the frozen prefix."""
