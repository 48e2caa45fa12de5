"""`python -m pipeline`, and the console script `unfreeze`: the same command line."""

import gc
import sys

from pipeline.cli import main


def start() -> None:
    """Run the command line and leave with its exit code."""
    # what the imports make stays for good: collecting it over and over costs a second
    gc.set_threshold(100_000, 50, 100)
    sys.exit(main())


if __name__ == "__main__":
    start()
