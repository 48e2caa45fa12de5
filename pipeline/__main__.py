"""`python -m pipeline`."""

import gc
import sys

from pipeline.cli import main

# what the imports make stays for good: collecting it over and over costs a second
gc.set_threshold(100_000, 50, 100)

sys.exit(main())
