"""Runs that others train, which are waited for, and runs that were stopped, which go on."""
