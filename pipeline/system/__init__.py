"""Files, databases, signals, processes and text: what the operating system gives."""
