"""Pairs: dealt from a pool of images, run here or as tasks, their results."""
