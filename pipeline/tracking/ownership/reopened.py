"""A run that goes on in another process: what it holds already is not logged again.

In: the id of a run that was stopped. Out: a `RunLog` that leaves out the parameters and the
metrics that are there, by their names and steps. Models that the run has logged are deleted: it
was stopped before its end and logs its model again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.tracking.connection.faults import translated
from pipeline.tracking.keys import FAILURE
from pipeline.tracking.run import RunLog, to_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient


def reopened(client: MlflowClient, uri: str, run_id: str, tags: Mapping[str, str]) -> RunLog:
    """The run, RUNNING again, with these tags by the names under which they are stored."""
    with translated("go on with a run", uri):
        client.log_batch(run_id, tags=to_tags(tags))
        if FAILURE in client.get_run(run_id).data.tags:
            client.delete_tag(run_id, FAILURE)
        client.update_run(run_id, status="RUNNING")
        run = client.get_run(run_id)
        experiment, data = run.info.experiment_id, run.data
        for model in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
            client.delete_logged_model(model.model_id)
        known = {
            (name, point.step)
            for name in data.metrics
            for point in client.get_metric_history(run_id, name)
        }
    return RunLog(
        client,
        uri,
        run_id,
        known_params=set(data.params),
        known_metrics=known,
        in_background=True,
    )
