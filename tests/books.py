"""What a storage and a tracking store say of their studies.

In a process of its own: neither Optuna nor MLflow closes its connections to a database.
"""

from __future__ import annotations

from typing import Any

from tests.forked import result_of


def read_books(storage: str, tracking: str) -> dict[str, Any]:
    """`studies`: name -> trials (number, state, value, run_id); `runs`: all of MLflow's."""
    books: dict[str, Any] = result_of(_books, storage, tracking)
    return books


def _books(storage: str, tracking: str) -> dict[str, Any]:
    import mlflow
    import optuna

    from pipeline.tuning.storage.access import open_storage

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
    return {"studies": studies, "runs": runs}
