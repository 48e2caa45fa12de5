"""Pretrained weights by name or file, what they were trained on, and checkpoints against them."""
