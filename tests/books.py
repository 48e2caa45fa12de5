"""What a storage and a tracking store say of their studies, as JSON on the standard output.

    python -m tests.books STORAGE TRACKING

In a process of its own: neither Optuna nor MLflow closes its connections to a database.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def read_books(storage: str, tracking: str) -> dict[str, Any]:
    """`studies`: name -> trials (number, state, value, run_id); `runs`: all of MLflow's."""
    words = [sys.executable, "-m", "tests.books", storage, tracking]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    books: dict[str, Any] = json.loads(done.stdout)
    return books


def main(storage: str, tracking: str) -> None:
    import mlflow
    import optuna

    from pipeline.tuning.storage import open_storage

    opened = open_storage(storage)
    studies = {
        name: [
            {
                "number": trial.number,
                "state": trial.state.name,
                "value": trial.value,
                "run_id": trial.user_attrs.get("run_id"),
            }
            for trial in optuna.load_study(study_name=name, storage=opened).get_trials()
        ]
        for name in optuna.get_all_study_names(opened)
    }
    client = mlflow.MlflowClient(tracking)
    places = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = [
        {
            "status": run.info.status,
            "tags": {
                k: run.data.tags[k] for k in ("kind", "trial", "study") if k in run.data.tags
            },
            "value": run.data.metrics.get("value"),
        }
        for run in client.search_runs(places, max_results=1000)
    ]
    sys.stdout.write(json.dumps({"studies": studies, "runs": runs}))


if __name__ == "__main__":
    main(*sys.argv[1:])
