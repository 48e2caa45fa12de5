"""A run that goes on in another process: what it holds already is not logged again.

In: a run that was stopped, and how far its state is. Out: a `RunLog` that leaves out the
parameters that are there, and the metrics of epochs that the state holds. What the stopped process
has logged of later epochs, or once, is logged anew: of two values at a step the later one counts.
Tags that are set where they apply, and do not any more, are deleted; so are models that the run
has logged: it was stopped before its end and logs its model again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.tracking.connection.faults import translated
from pipeline.tracking.keys import FAILURE, WHERE_THEY_APPLY, stored_tag
from pipeline.tracking.run import RunLog, to_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Stopped:
    """A run to go on with; `done`: epochs that its state holds, of the stage that goes on."""

    run_id: str
    done: int

    def reopened(self, client: MlflowClient, uri: str, tags: Mapping[str, str]) -> RunLog:
        """The run, RUNNING again, with these tags by the names under which they are stored."""
        run_id = self.run_id
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
            known = {
                (name, point.step)
                for name in data.metrics
                for point in client.get_metric_history(run_id, name)
                if 0 < point.step <= self.done
            }
        return RunLog(
            client,
            uri,
            run_id,
            known_params=set(data.params),
            known_metrics=known,
            in_background=True,
        )
