"""Files and databases: written whole, told apart by content, shared, and kept within a limit."""
