"""What `decide` and `compare` do before pairs are run, and `decide` after its verdict."""
