"""One run being written: parameters, tags, metrics, files, the servable model, its end."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.errors import AwayError, PipelineError, RunStopped, TrackingError, note_once
from pipeline.stats.metrics import rounded
from pipeline.tracking.connection.faults import translated
from pipeline.tracking.connection.sender import Sender
from pipeline.tracking.keys import FAILURE, stored_tag

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

    from pipeline.tracking.connection.client import PatientClient

_NOT_GIVEN = ("", "auto", None)
"""Values of settings that nobody has set: no parameters."""

_TABLES = "mlflow.loggedArtifacts"
"""MLflow's tag that says which files are tables."""


class RunLog:
    """One run being written; `wait` waits for metrics that are written in the background."""

    def __init__(
        self,
        client: MlflowClient,
        uri: str,
        run_id: str,
        *,
        known_params: Collection[str] = (),
        known_metrics: Mapping[tuple[str, int], float] | None = None,
        in_background: bool = False,
    ) -> None:
        self._client = client
        self._uri = uri
        self.run_id = run_id
        self._known_params = known_params
        self._known_metrics = known_metrics or {}
        self._sender = Sender(cast("PatientClient", client).patience) if in_background else None

    def params(self, values: Mapping[str, object]) -> None:
        """Log parameters that have a value; what `mlflow run` logged stays as typed."""
        from mlflow.entities import Param

        given = {key: value for key, value in values.items() if value not in _NOT_GIVEN}
        new = {key: value for key, value in given.items() if key not in self._known_params}
        params = [Param(key, str(value)) for key, value in new.items()]
        with translated("log parameters", self._uri):
            for start in range(0, len(params), 100):
                self._client.log_batch(self.run_id, params=params[start : start + 100])

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        with translated("set tags", self._uri):
            self._client.log_batch(self.run_id, tags=to_tags(values))

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics to six digits; waits for no store where that is done in the background.

        What a run that goes on has at that step is not logged again.
        """
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        known, six = self._known_metrics, {key: rounded(v) for key, v in values.items()}
        new = {key: v for key, v in six.items() if known.get((key, step)) != v}
        batch = [Metric(key, value, now_ms, step) for key, value in new.items()]
        send = partial(self._client.log_batch, self.run_id, metrics=batch)
        if self._sender:
            self._sender.send(send)
        else:
            with translated("log metrics", self._uri):
                send()

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
        with translated("log a dataset", self._uri):
            self._client.log_inputs(self.run_id, [tagged])

    def file(self, path: Path, folder: str | None = None) -> None:
        """Upload a file."""
        with translated(f"store {path.name}", self._uri):
            self._client.log_artifact(self.run_id, str(path), folder)

    def text(self, content: str, path: str) -> None:
        """Store text as an artifact."""
        with translated(f"store {path}", self._uri):
            self._client.log_text(self.run_id, content, path)

    def figure(self, figure: Any, path: str) -> None:  # noqa: ANN401 - matplotlib's, imported late
        """Store a picture.

        Where everything stands is found once; matplotlib's own way draws the picture for that.
        """
        if engine := figure.get_layout_engine():
            engine.execute(figure)
            figure.set_layout_engine("none")
        png = {"pil_kwargs": {"compress_level": 3}} if path.endswith(".png") else {}
        with translated(f"store {path}", self._uri):
            self._client.log_figure(self.run_id, figure, path, save_kwargs=png)

    def table(self, frame: pd.DataFrame, path: str, pictures: Sequence[bytes] = ()) -> None:
        """Store a table that MLflow's pages show, with a column of pictures where there are any.

        `pictures`: PNG files, one a row: pages complain of rows without. MLflow's own way stores
        each picture twice, which its pages do not need.
        """
        import pandas as pd

        frame = frame.astype(object)  # where pandas 3 has strings, MLflow makes it warn
        folder = f"table_images/{Path(path).stem}"
        cells: list[object] = []
        with tempfile.TemporaryDirectory() as copies, translated(f"store {path}", self._uri):
            for number, picture in enumerate(pictures):
                name = f"{number}.png"
                Path(copies, name).write_bytes(picture)
                place = f"{folder}/{name}"
                cells.append({"type": "image", "filepath": place, "compressed_filepath": place})
            if cells:
                self._client.log_artifacts(self.run_id, copies, folder)
                frame = pd.concat([pd.Series(cells, frame.index, name="image"), frame], axis=1)
            # in MLflow's own format; MLflow would append to a table that is there, asked twice
            content = frame.to_json(orient="split", index=False, date_format="iso")
            self._client.log_text(self.run_id, content, path)
            tables = self._client.get_run(self.run_id).data.tags.get(_TABLES, "[]")
            if (entry := {"path": path, "type": "table"}) not in (listed := json.loads(tables)):
                self._client.set_tag(self.run_id, _TABLES, json.dumps([*listed, entry]))

    def model(
        self,
        *,
        code: Path,
        helpers: Sequence[Path],
        artifacts: Mapping[str, Path],
        name: str,
        example_image: bytes,
        class_names: Sequence[str],
        error_name: str,
        requirements: Sequence[str],
    ) -> str:
        """Log a servable model; nothing is inferred, all is stated. Returns the model's URI."""
        import pandas as pd
        from mlflow.models import Model, ModelSignature
        from mlflow.types import ColSpec, DataType, Schema, TensorSpec

        logging.getLogger("mlflow.models.model").setLevel(logging.ERROR)
        logging.getLogger("mlflow.pyfunc").setLevel(logging.ERROR)
        outputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.string, "label")]
        outputs += [ColSpec(DataType.double, name) for name in class_names]
        outputs.append(ColSpec(DataType.string, error_name, required=False))
        # the model itself answers for each row, in one sentence: MLflow would lose the request
        image = ColSpec(DataType.string, "image", required=False)
        signature = ModelSignature(Schema([image]), Schema(outputs))
        with translated("store the model", self._uri):
            log = partial(
                Model.log,
                artifact_path=None,
                flavor=_StatedPyfunc,
                flavor_name="mlflow.pyfunc",
                name=name,
                run_id=self.run_id,
                python_model=str(code),
                code_paths=[str(path) for path in helpers],
                artifacts={key: str(path) for key, path in artifacts.items()},
                signature=signature,
                input_example=pd.DataFrame({"image": [example_image]}),
                pip_requirements=list(requirements),
                validate_serving_input=False,
            )
            client = cast("PatientClient", self._client)
            return client.log_model(
                self.run_id, name, lambda model_id: str(log(model_id=model_id).model_uri)
            )

    def wait(self) -> None:
        """Wait for the metrics that are on their way.

        Raises:
            TrackingError: the store refused some.
        """
        with translated("log metrics", self._uri):
            if self._sender:
                self._sender.wait()

    def delete(self) -> None:
        """Mark the run as deleted: another run stands for it."""
        with translated("delete a run", self._uri):
            self._client.delete_run(self.run_id)

    def give_back(self, tags: Collection[str]) -> None:
        """Leave the run as MLflow has started it: without these tags."""
        with translated("take back a run", self._uri):
            for tag in tags:
                self._client.delete_tag(self.run_id, stored_tag(tag))
        self.set_status("RUNNING")

    def set_status(self, status: str, reason: str = "") -> None:
        """Change the status; metrics that are still waiting are dropped.

        `reason` becomes a tag; without a reason, a reason that the run had before is taken away.

        Raises:
            TrackingError: the store refused it.
        """
        if self._sender:
            self._sender.drop()
        with translated("set a run's status", self._uri):
            if reason:
                # two commands may say so at once: `set_tag` would fail for one of them
                self._client.log_batch(self.run_id, tags=to_tags({FAILURE: reason[:5000]}))
            elif FAILURE in self._client.get_run(self.run_id).data.tags:
                self._client.delete_tag(self.run_id, FAILURE)
            if status == "RUNNING":
                self._client.update_run(self.run_id, status=status)
            else:
                self._client.set_terminated(self.run_id, status)


class _StatedPyfunc:
    """MLflow's pyfunc flavor without loading the model once more to try the example on it."""

    @staticmethod
    def save_model(*, validate_serving_input: bool, **stated: Any) -> None:  # noqa: ANN401
        import mlflow

        with _installed_as_stated():
            mlflow.pyfunc.save_model(**stated)


@contextmanager
def _installed_as_stated() -> Iterator[None]:
    """Spare MLflow's comparison of requirements with what is installed: they are read from there.

    For it MLflow would look at every file of every installed package, which takes seconds.
    """
    from mlflow.utils import environment

    name = "warn_dependency_requirement_mismatches"
    if (warn := getattr(environment, name, None)) is None:  # a version without it
        yield
        return
    setattr(environment, name, lambda requirements: None)
    try:
        yield
    finally:
        setattr(environment, name, warn)


@contextmanager
def ending(log: RunLog) -> Iterator[None]:
    """Give a run the end that this comes to, once all its metrics are stored."""
    try:
        yield
        log.wait()
    except RunStopped as stopped:
        log.set_status("KILLED", str(stopped))
        raise
    except BaseException as err:
        try:
            log.set_status(status_of(err), why_ended(err))
        except TrackingError as lost:  # what ended the run counts, not that it is not recorded
            if not isinstance(err, AwayError):  # which says as much
                note_once(err, lost)
        raise
    log.set_status("FINISHED")


def status_of(err: BaseException) -> str:
    """The status of a run that this has ended."""
    return "KILLED" if isinstance(err, KeyboardInterrupt) else "FAILED"


def why_ended(err: BaseException) -> str:
    """What the tag `failure` says of it."""
    if isinstance(err, KeyboardInterrupt):
        return "stopped by Ctrl-C or a signal"
    return str(err) if isinstance(err, PipelineError) else f"{type(err).__name__}: {err}"


def to_tags(values: Mapping[str, str]) -> list[Any]:
    """Tags as MLflow's own objects, by the names under which they are stored."""
    from mlflow.entities import RunTag

    return [RunTag(stored_tag(key), value) for key, value in values.items()]
