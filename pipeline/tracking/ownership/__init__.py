"""Whose a run is: who is alive, who goes first, and runs that another process has begun."""
