"""What people read before, beside and after the runs of a command."""
