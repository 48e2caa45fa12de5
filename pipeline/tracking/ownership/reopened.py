"""A run that goes on in another process: what it holds already is not logged again.

In: the id of a run that was stopped. Out: a `RunLog` that leaves out the parameters that are
there, and the metrics that have the same value at their step: another value counts from now on.
Tags that are set where they apply, and do not any more, are deleted; so are models that the run
has logged: it was stopped before its end and logs its model again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.tracking.connection.faults import translated
from pipeline.tracking.keys import FAILURE, WHERE_THEY_APPLY, stored_tag
from pipeline.tracking.run import RunLog, to_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient


def reopened(client: MlflowClient, uri: str, run_id: str, tags: Mapping[str, str]) -> RunLog:
    """The run, RUNNING again, with these tags by the names under which they are stored."""
    with translated("go on with a run", uri):
        client.log_batch(run_id, tags=to_tags(tags))
        may_go = {FAILURE, *map(stored_tag, WHERE_THEY_APPLY)} - tags.keys()
        for tag in sorted(may_go & client.get_run(run_id).data.tags.keys()):
            client.delete_tag(run_id, tag)
        client.update_run(run_id, status="RUNNING")
        run = client.get_run(run_id)
        experiment, data = run.info.experiment_id, run.data
        for model in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
            client.delete_logged_model(model.model_id)
        points = [
            (point.timestamp, name, point.step, point.value)
            for name in data.metrics
            for point in client.get_metric_history(run_id, name)
        ]
    return RunLog(
        client,
        uri,
        run_id,
        known_params=set(data.params),
        known_metrics={(name, step): value for _, name, step, value in sorted(points)},
        in_background=True,
    )
