"""Networks cut into blocks, their pretrained weights, checkpoints and the proof of freezing."""
