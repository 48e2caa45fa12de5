"""What a person types: the entry points of MLproject, one module each."""
