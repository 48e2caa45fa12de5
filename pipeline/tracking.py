"""MLflow: where runs are found, started, fed and ended. The only importer of MLflow's client.

In: names and numbers. Out: runs that a person can browse. Every exception of MLflow and its
transport becomes a TrackingError here. `mlflow run` starts a run before our code runs
(MLFLOW_RUN_ID): the first run that we start adopts it, so that a launched entry point is one run
and not two.

Not covered: servers that need a login of their own; MLflow's environment variables take care of
these.
"""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import LineageError, PipelineError, TrackingError
from pipeline.provenance import PROJECT_DIR, git_commit

if TYPE_CHECKING:
    from mlflow import MlflowClient

CONTACT_TIMEOUT_S = 5.0
NESTED_UNDER = "mlflow.parentRunId"


@contextmanager
def _translated(doing: str, uri: str) -> Iterator[None]:
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, requests.RequestException, SQLAlchemyError) as err:
        reason = str(err).strip().splitlines()[0][:200] if str(err).strip() else type(err).__name__
        raise TrackingError(
            f"MLflow could not {doing} at {uri} ({reason}): check the server and the disk, then "
            "run the "
            "same command again; finished stages are reused"
        ) from None


@dataclass(frozen=True)
class RunView:
    """A run as it is stored: what other modules may know of it."""

    run_id: str
    name: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]


class Tracking:
    """A connection to the tracking store and one experiment in it."""

    def __init__(
        self, client: MlflowClient, uri: str, experiment_id: str, launched: str | None
    ) -> None:
        self._client = client
        self.uri = uri
        self.experiment_id = experiment_id
        self._launched = launched
        self.git_commit = git_commit()

    @classmethod
    def connect(cls) -> Tracking:
        """Connect to MLFLOW_TRACKING_URI, or to MLflow's default (sqlite:///mlflow.db).

        Raises:
            TrackingError: nothing answers there.
        """
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        for noisy in ("alembic", "mlflow.store.db", "mlflow.tracking.fluent"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if uri.startswith(("http://", "https://")):
            _contact(uri)  # before importing MLflow, which would try for minutes
        import mlflow

        uri = mlflow.get_tracking_uri()
        with _translated("connect", uri):
            client = mlflow.MlflowClient(uri)
            launched = os.environ.pop("MLFLOW_RUN_ID", None)
            return cls(client, uri, _experiment_id(client, launched), launched)

    @property
    def ui_command(self) -> str:
        """What to type, or where to look, to browse the runs."""
        if self.uri.startswith(("http://", "https://")):
            return f"open {self.uri}/#/experiments/{self.experiment_id}"
        return f"mlflow ui --backend-store-uri {self.uri}"

    def get(self, run_id: str) -> RunView:
        """The run of that id.

        Raises:
            LineageError: there is none.
        """
        from mlflow.exceptions import MlflowException

        with _translated("read a run", self.uri):
            try:
                return _view(self._client.get_run(run_id))
            except MlflowException as err:
                if err.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
        raise LineageError(
            f"run {run_id} does not exist in {self.uri}: copy the id from the MLflow UI, or leave "
            "parent_run_id out to have a parent found or trained"
        )

    def find(self, tags: Mapping[str, str]) -> list[RunView]:
        """Finished runs of this experiment that carry all these tags, oldest first."""
        wanted = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
        query = " and ".join(["attributes.status = 'FINISHED'", *wanted])
        with _translated("search runs", self.uri):
            runs = self._client.search_runs(
                [self.experiment_id],
                query,
                order_by=["attributes.start_time ASC"],
                max_results=1000,
            )
        return [_view(run) for run in runs]

    def fetch(self, run: RunView, artifact: str, folder: Path) -> Path:
        """A local copy of a run's artifact.

        Raises:
            LineageError: the run has no such artifact.
        """
        from mlflow.exceptions import MlflowException

        try:
            return Path(self._client.download_artifacts(run.run_id, artifact, str(folder)))
        except (MlflowException, OSError):
            raise LineageError(
                f"run {run.run_id} ({run.name}) has no artifact {artifact}: it was deleted or "
                "never "
                "logged; leave parent_run_id out to have it trained again"
            ) from None

    def add_metrics(self, run_id: str, values: Mapping[str, float]) -> None:
        """Add metrics to a run that has finished."""
        with _translated("log metrics", self.uri):
            for key, value in values.items():
                self._client.log_metric(run_id, key, value)

    @contextmanager
    def run(
        self, name: str, tags: Mapping[str, str], *, target: bool, nested_under: str | None = None
    ) -> Iterator[RunLog]:
        """A run that ends FINISHED, FAILED with its reason as a tag, or KILLED by Ctrl-C.

        `target`: the run that the user asked for; it adopts the one that `mlflow run` started.
        """
        log = self._start(name, tags, target=target, nested_under=nested_under)
        try:
            yield log
        except KeyboardInterrupt:
            log.end("KILLED", "stopped by Ctrl-C or a signal")
            raise
        except BaseException as err:
            reason = str(err) if isinstance(err, PipelineError) else f"{type(err).__name__}: {err}"
            try:
                log.end("FAILED", reason)
            except TrackingError as lost:
                err.add_note(str(lost))
            raise
        log.end("FINISHED")

    def _start(
        self, name: str, tags: Mapping[str, str], *, target: bool, nested_under: str | None
    ) -> RunLog:
        all_tags = {
            "mlflow.runName": name,
            "mlflow.source.name": str(PROJECT_DIR),
            "mlflow.source.git.commit": self.git_commit.removesuffix("-dirty"),
            "git_commit": self.git_commit,
            **({NESTED_UNDER: nested_under} if nested_under else {}),
            **tags,
        }
        with _translated("start a run", self.uri):
            if target and self._launched:
                run_id, self._launched = self._launched, None
                del all_tags["mlflow.source.name"]  # `mlflow run` knows better
                self._client.log_batch(run_id, tags=_tags(all_tags))
                known = set(self._client.get_run(run_id).data.params)
            else:
                run_id = self._client.create_run(self.experiment_id, tags=all_tags).info.run_id
                known = set()
        return RunLog(self._client, self.uri, run_id, known)


class RunLog:
    """One run being written. Metrics go out in the background; `end` waits for them."""

    def __init__(
        self, client: MlflowClient, uri: str, run_id: str, known_params: set[str]
    ) -> None:
        self._client = client
        self._uri = uri
        self.run_id = run_id
        self._known_params = known_params
        self._pending: list[Any] = []

    def params(self, values: Mapping[str, object]) -> None:
        """Log parameters; those that `mlflow run` logged from the command line stay as typed."""
        from mlflow.entities import Param

        new = {key: value for key, value in values.items() if key not in self._known_params}
        params = [Param(key, str(value)) for key, value in new.items()]
        with _translated("log parameters", self._uri):
            for start in range(0, len(params), 100):
                self._client.log_batch(self.run_id, params=params[start : start + 100])

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        with _translated("set tags", self._uri):
            self._client.log_batch(self.run_id, tags=_tags(values))

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics without waiting for the store."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        batch = [Metric(key, float(value), now_ms, step) for key, value in values.items()]
        with _translated("log metrics", self._uri):
            self._pending.append(
                self._client.log_batch(self.run_id, metrics=batch, synchronous=False)
            )

    def dataset(
        self, name: str, fingerprint: str, context: str, about: Mapping[str, object]
    ) -> None:
        """Name an input data set by its SHA-256; `context` is training or validation."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=fingerprint[:32],  # MLflow keeps 36 characters
            source_type="local",
            source=json.dumps({"uri": str(about.get("data", name)), "sha256": fingerprint}),
            profile=json.dumps(dict(about)),
        )
        tagged = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
        with _translated("log a dataset", self._uri):
            self._client.log_inputs(self.run_id, [tagged])

    def file(self, path: Path, folder: str | None = None) -> None:
        """Upload a file."""
        with _translated(f"store {path.name}", self._uri):
            self._client.log_artifact(self.run_id, str(path), folder)

    def text(self, content: str, path: str) -> None:
        """Store text as an artifact."""
        with _translated(f"store {path}", self._uri):
            self._client.log_text(self.run_id, content, path)

    def figure(self, figure: Any, path: str) -> None:  # noqa: ANN401 - matplotlib's, imported late
        """Store a picture."""
        with _translated(f"store {path}", self._uri):
            self._client.log_figure(self.run_id, figure, path)

    def model(
        self,
        *,
        code: Path,
        helpers: Sequence[Path],
        artifacts: Mapping[str, Path],
        example_image: bytes,
        class_names: Sequence[str],
        requirements: Sequence[str],
    ) -> str:
        """Log a servable model; nothing is inferred, all is stated. Returns the model's URI."""
        import mlflow
        import pandas as pd
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, DataType, Schema, TensorSpec

        logging.getLogger("mlflow.models.model").setLevel(logging.ERROR)
        logging.getLogger("mlflow.pyfunc").setLevel(logging.ERROR)
        outputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.string, "label")]
        outputs += [ColSpec(DataType.double, name) for name in class_names]
        signature = ModelSignature(Schema([ColSpec(DataType.binary, "image")]), Schema(outputs))
        with _translated("store the model", self._uri):
            mlflow.set_tracking_uri(self._uri)
            mlflow.start_run(run_id=self.run_id)
            try:
                logged = mlflow.pyfunc.log_model(
                    name="model",
                    python_model=str(code),
                    code_paths=[str(path) for path in helpers],
                    artifacts={key: str(path) for key, path in artifacts.items()},
                    signature=signature,
                    input_example=pd.DataFrame({"image": [example_image]}),
                    pip_requirements=list(requirements),
                )
            finally:
                mlflow.end_run("RUNNING")  # leaves fluent's stack; `end` below decides the status
        return str(logged.model_uri)

    def end(self, status: str, reason: str = "") -> None:
        """Wait for what is on its way, then set the final status.

        Raises:
            TrackingError: the store refused something.
        """
        with _translated("end the run", self._uri):
            if reason:
                self._client.set_tag(self.run_id, "failure", reason[:5000])
            if status == "FINISHED":
                for operation in self._pending:
                    operation.wait()
            self._client.set_terminated(self.run_id, status)


def _tags(values: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(key, value) for key, value in values.items()]


def _view(run: Any) -> RunView:  # noqa: ANN401 - MLflow's own type
    return RunView(
        run.info.run_id,
        run.info.run_name or "",
        run.info.status,
        run.data.tags,
        run.data.params,
        run.data.metrics,
    )


def _contact(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=CONTACT_TIMEOUT_S):
            return
    except urllib.error.HTTPError:
        return  # something answers
    except (OSError, ValueError) as err:
        reason = getattr(err, "reason", err)
        raise TrackingError(
            f"no tracking server answers at MLFLOW_TRACKING_URI={uri} ({reason}): start one with "
            "`mlflow server`, or unset MLFLOW_TRACKING_URI to record in ./mlflow.db"
        ) from None


def _experiment_id(client: MlflowClient, launched: str | None) -> str:
    if launched:
        return str(client.get_run(launched).info.experiment_id)
    if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return experiment_id
    if name := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
        found = client.get_experiment_by_name(name)
        return str(found.experiment_id) if found else str(client.create_experiment(name))
    return "0"
