"""Seconds that the n-th stage-2 trial of one process has taken in all, as a JSON list.

    python benchmarks/trials.py COUNT --preset … --data … (settings as on the command line)

Trials differ in their rate, start from one stage-1 run, and are logged like every run, without the
servable model. The first figure contains everything before it but imports: reading the images,
the prefix, stage 1.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

from pipeline.cli import parse
from pipeline.config import load_settings
from pipeline.run_stage import find_or_run, run_stage
from pipeline.session import Session
from pipeline.tracking import Tracking


def main() -> None:
    """Run the trials."""
    count, options = int(sys.argv[1]), parse(["stage2", *sys.argv[2:]])[1]
    given = {key: value for key, value in options.items() if value not in ("auto", "none", "")}
    started = time.perf_counter()
    seconds = []
    session = None
    for trial in range(count):
        rate = 1e-4 * 10 ** (trial / max(1, count - 1))
        settings = load_settings({**given, "stage2.lr": str(rate)}, target=2)
        if session is None:
            session = Session.open(settings, Tracking.connect(), lambda _: None)
            parent = session.tracking.get(find_or_run(session, 1).run_id)
        session = replace(session, settings=settings, keys={}, done={})
        run_stage(session, 2, parent, target=False)
        seconds.append(time.perf_counter() - started)
    sys.stdout.write(json.dumps(seconds) + "\n")


if __name__ == "__main__":
    main()
