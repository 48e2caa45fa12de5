"""Networks by name, cut into blocks, and the proof of freezing."""
