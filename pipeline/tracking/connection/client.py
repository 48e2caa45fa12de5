"""MLflow's client, each of whose questions waits for a server that is away.

In: MLflow's client. Out: the same methods. What MLflow would do twice if it were asked twice is
found instead: runs, versions of models, and what is deleted. `once` is the client as it is, for
threads and questions that must not wait.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pipeline.system.progress import loading
from pipeline.tracking.connection.away import away_of
from pipeline.tracking.connection.patience import Patience, ask_briefly

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

_Result = TypeVar("_Result")


class PatientClient:
    """Stands for `once`, MLflow's client at `uri`."""

    def __init__(self, once: MlflowClient, uri: str) -> None:
        self.once = once
        self.patience = Patience(lambda err: away_of(err, uri))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever MLflow's client has
        method = getattr(self.once, name)
        if not callable(method):
            return method

        @wraps(method)
        def patiently(*args: object, **named: object) -> object:
            again = self._if_there(method) if name.startswith("delete_") else method
            first = partial(method, *args, **named)
            return self.patience.call(_first_then(first, partial(again, *args, **named)))

        return patiently

    @staticmethod
    def _if_there(delete: Callable[..., object]) -> Callable[..., object]:
        """Delete what an attempt whose answer was lost has perhaps deleted."""
        from mlflow.exceptions import MlflowException

        def again(*args: object, **named: object) -> object:
            try:
                return delete(*args, **named)
            except MlflowException as err:
                if err.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None

        return again

    def create_run(self, experiment_id: str, tags: Mapping[str, str]) -> Run:
        """Start a run: one, also where the server's answer was lost."""
        start = int(time.time() * 1000)
        create = partial(self.once.create_run, experiment_id, start_time=start, tags=dict(tags))

        def found() -> Run | None:
            runs = self.once.search_runs([experiment_id], f"attributes.start_time = {start}")
            return next((run for run in runs if tags.items() <= run.data.tags.items()), None)

        return self.patience.call(create, found)

    def create_model_version(self, name: str, source: str) -> ModelVersion:
        """Register a model: once, also where the server's answer was lost."""
        create = partial(self.once.create_model_version, name, source)

        def found() -> ModelVersion | None:
            versions = self.once.search_model_versions(f"name = '{name}'")
            return next((each for each in versions if each.source == source), None)

        return self.patience.call(create, found)

    def log_model(self, run_id: str, name: str, log: Callable[[str], str]) -> str:
        """Log a model and give its address: one model, what was begun before is taken away.

        It is made in the experiment of its run; MLflow would make it in the one that is active.
        `log`: stores the files of the model of that id, and gives its address.
        """
        run = self.patience.call(lambda: self.once.get_run(run_id))
        place = run.info.experiment_id

        def make() -> str:
            model = self.once.create_logged_model(place, name, run_id, params=run.data.params)
            return log(model.model_id)

        def found() -> str | None:
            own = f"source_run_id = '{run_id}'"
            for model in self.once.search_logged_models([place], own):
                if model.name != name:
                    continue
                if model.status == "READY":
                    return str(model.model_uri)
                self.once.delete_logged_model(model.model_id)
            return None

        return self.patience.call(make, found)


def _first_then(first: Callable[[], object], later: Callable[[], object]) -> Callable[[], object]:
    """Something that does one thing when it is first called, another from then on."""
    things = [first]
    return lambda: (things.pop() if things else later)()


def import_quietly() -> None:
    """Import MLflow, and have it say nothing that a command says itself."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a run
    for noisy in ("alembic", "mlflow.tracking.fluent"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # it logs the tracebacks of faults that `translated` says in one line
    logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)
    with loading("MLflow", "mlflow"):
        import mlflow  # noqa: F401


def patient(client: MlflowClient, uri: str) -> MlflowClient:
    """MLflow's client, made patient.

    Raises:
        TrackingError: the environment does not say how long to wait.
    """
    ask_briefly()
    return cast("MlflowClient", PatientClient(client, uri))
