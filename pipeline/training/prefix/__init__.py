"""The outputs of the frozen prefix: computed once, kept on disk, read while training."""
