"""One stage, from its parent to a logged run."""
