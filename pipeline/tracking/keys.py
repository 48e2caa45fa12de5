"""Names of tags and metrics that more than one module reads or writes."""

POOL = "pool_sha256"
"""The tag that says what a run's draw was dealt from."""
