"""`python -m pipeline`, and the console script `unfreeze`: the same command line."""

import gc
import sys

from pipeline.system.installed import IncompleteError, check_installed, explain


def start() -> None:
    """Run the command line and leave with its exit code."""
    # what the imports make stays for good: collecting it over and over costs a second
    gc.set_threshold(100_000, 50, 100)
    try:
        check_installed()
        sys.exit(_run())
    except IncompleteError as err:
        sys.stderr.write(f"error: {err}\n")
        sys.exit(2)


def _run() -> int:
    """The command line, imported only once its libraries are known to be there."""
    try:
        from pipeline.cli import main

        return main()
    except ModuleNotFoundError as err:
        explain(err)
        raise


if __name__ == "__main__":
    start()
