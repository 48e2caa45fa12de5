"""Names of tags and metrics that more than one module reads or writes."""

POOL = "pool_sha256"
TEST_AS_STORED = "test_stored_sha256"
"""The test split's files as they were when a stage was trained."""
"""The tag that says what a run's draw was dealt from."""
