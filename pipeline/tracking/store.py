"""The tracking store: find runs, start runs, fetch what they hold.

`mlflow run` starts a run before our code runs (MLFLOW_RUN_ID): the run that the user asked for
adopts it, so that a launched entry point is one run and not two.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import LineageError, OvertakenError, PipelineError, TrackingError
from pipeline.system.disk.databases import exclusively
from pipeline.system.interrupts import begun
from pipeline.system.network.addresses import without_password
from pipeline.system.processes import owner_tags
from pipeline.system.progress import doing
from pipeline.system.provenance import PROJECT_DIR, git_commit
from pipeline.tracking.connection.address import URI, usable_address
from pipeline.tracking.connection.client import import_quietly, patient
from pipeline.tracking.connection.faults import translated
from pipeline.tracking.disk import StoredRun, copied, discard, stored_runs
from pipeline.tracking.experiment import ID as EXPERIMENT_ID
from pipeline.tracking.experiment import check_files, is_named, places_of, usable_experiment
from pipeline.tracking.keys import (
    DATA,
    GIT_COMMIT,
    KIND,
    NAME,
    NESTED_UNDER,
    TICKET,
    Tags,
    as_logged,
    former,
    is_for_programs,
    stored_tag,
)
from pipeline.tracking.ownership.owners import Owners
from pipeline.tracking.ownership.reopened import reopened
from pipeline.tracking.ownership.turns import DRAWING, Once, take_turn
from pipeline.tracking.pages import how_to_open
from pipeline.tracking.registry import (
    ModelVersion,
    Registered,
    champions,
    register,
    run_of_model,
)
from pipeline.tracking.run import RunLog, ending, status_of, to_tags, why_ended
from pipeline.tracking.search import Search
from pipeline.tracking.tables import client_of
from pipeline.tracking.view import RunView

if TYPE_CHECKING:
    from mlflow import MlflowClient


class Tracking:
    """A connection to the tracking store and one experiment in it."""

    def __init__(
        self,
        client: MlflowClient,
        uri: str,
        experiment_ids: list[str],
        launched: str | None,
        *,
        files: bool = True,
    ) -> None:
        self._client = client
        self.uri = uri
        self.experiment_id = experiment_ids[0]
        self._search = Search(client, uri, experiment_ids)
        self._launched, self._files = launched, files
        self._target = ""
        self.owners = Owners(client, uri, self.find)
        self.recipes_met: set[str] = set()  # of stage runs that the command has found or made
        self.git_commit = git_commit()

    @classmethod
    def connect(cls, name: str = "", data: str = "", *, files: bool = True) -> Tracking:
        """Connect to MLFLOW_TRACKING_URI, or to MLflow's default (sqlite:///mlflow.db).

        `name`: what a run that `mlflow run` has started is called until it is known better.
        `data`: the name of the data, which the experiment is called as where nobody says
        otherwise. `files`: files will be logged, not metrics and tags alone.

        Raises:
            TrackingError: nothing answers there, or nothing can be recorded there.
        """
        import_quietly()  # what takes time, before anybody is asked
        uri = usable_address()
        shown = without_password(uri)
        begun()
        try:
            with doing("opening the store"), translated("connect", shown), exclusively(uri):
                client = patient(client_of(uri), uri)
                launched = os.environ.pop("MLFLOW_RUN_ID", None)
                places = usable_experiment(client, launched, shown, data, files=files)
                if launched and name:
                    client.set_tag(launched, NAME, name)
                return cls(client, shown, places, launched, files=files)
        except ModuleNotFoundError as err:
            raise TrackingError(
                f"MLFLOW_TRACKING_URI={shown}: its driver is not installed ({err}): pip install it"
            ) from None

    @property
    def place(self) -> dict[str, str]:
        """The variables by which another process records in the same place; with a password."""
        import mlflow

        return {URI: mlflow.get_tracking_uri(), EXPERIMENT_ID: self.experiment_id}

    @property
    def how_to_browse(self) -> str:
        """What to type, and which page to open, to see the run that was asked for."""
        return how_to_open(self.uri, self.experiment_id, self._target)

    def follow(self, run: RunView) -> None:
        """Find runs where those of a run's data are; record there, if nobody says otherwise."""
        with translated("read an experiment", self.uri):
            places = places_of(self._client, run.experiment_id, run.tags.get(DATA, ""))
        own = self._search.places
        own += [place for place in places if place not in own]
        if self._launched or is_named():
            return
        self.experiment_id = run.experiment_id
        if self._files:
            with translated("read an experiment", self.uri):
                check_files(self._client.get_experiment(run.experiment_id), self.uri)

    def get(self, run_id: str) -> RunView:
        """The run of that id.

        Raises:
            LineageError: there is none.
        """
        from mlflow.exceptions import MlflowException

        with translated("read a run", self.uri):
            try:
                run = self._client.get_run(run_id)
                if run.info.lifecycle_stage == "active":
                    return RunView.of(run)
            except MlflowException as err:
                if err.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
        raise LineageError(
            f"run {run_id} does not exist in {self.uri}, or was deleted: copy the id of a stage "
            "run from the MLflow UI"
        )

    def find(self, tags: Mapping[str, str], *, status: str | None = "FINISHED") -> list[RunView]:
        """Runs of a status (None: any) with all these tags, of any version, oldest first."""
        return self._search.find(tags, status=status)

    def fetch(self, run: RunView, artifact: str, folder: Path) -> Path:
        """A local copy of a run's artifact.

        Raises:
            LineageError: the run has no such artifact; the caller says which run that is.
            TrackingError: the store does not answer.
        """
        from mlflow.exceptions import MlflowException

        if here := copied(run.files, artifact, folder):
            return here
        try:
            return Path(self._client.download_artifacts(run.run_id, artifact, str(folder)))
        except (MlflowException, OSError):
            if self._holds(run, artifact):  # the disk is full, or the server is away
                with translated(f"read {artifact}", self.uri):
                    raise
            raise LineageError(
                f"its artifact {artifact} was deleted, or was never logged"
            ) from None

    def _holds(self, run: RunView, artifact: str) -> bool:
        with translated(f"list artifacts of run {run.run_id}", self.uri):
            folder = artifact.rpartition("/")[0] or None
            files = self._client.list_artifacts(run.run_id, folder)
        return artifact in {file.path for file in files}

    def history(self, run_id: str, metric: str) -> list[float]:
        """A metric's values in the order of their steps, the last of each; empty: none."""
        with translated("read a metric", self.uri):
            found = self._client.get_metric_history(run_id, metric)
            for name in former(metric):
                found = found or self._client.get_metric_history(run_id, name)
        found = sorted(found, key=lambda point: (point.step, point.timestamp))
        return [as_logged(v) for v in {point.step: point.value for point in found}.values()]

    def start(self, name: str, tags: Mapping[str, str], *, nested_under: str | None = None) -> str:
        """Start a run that outlives this process; returns its id."""
        return self._start(name, tags, target=False, nested_under=nested_under).run_id

    def writing(self, run_id: str) -> RunLog:
        """A run that is there already, to add to: metrics, too, are stored at once."""
        return RunLog(self._client, self.uri, run_id)

    def on_disk(self) -> list[StoredRun]:
        """Every run of ours, in any experiment, with what it occupies on this machine."""
        return stored_runs(self._client, self.uri)

    def discard(self, run: StoredRun) -> None:
        """Mark a trial's or a failed run as deleted, and remove its files."""
        discard(self._client, self.uri, run)

    def register(self, name: str, version: ModelVersion) -> Registered:
        """Put a logged model into the registry."""
        with translated("register the model", self.uri):
            return register(self._client, name, version)

    def champions(self) -> list[str]:
        """Names of the registered models that have a champion."""
        with translated("list registered models", self.uri):
            return champions(self._client)

    def run_of_model(self, uri: str) -> str:
        """The run that logged a model, by the model's address; empty where there is none.

        Raises:
            TrackingError: the store cannot be asked, or the model's files are gone.
        """
        with translated("find the model", self.uri):
            return run_of_model(uri)

    @contextmanager
    def run(
        self,
        name: str,
        tags: Mapping[str, str],
        *,
        target: bool,
        nested_under: str | None = None,
        once: Once | None = None,
        goes_on: str = "",
    ) -> Iterator[RunLog]:
        """A run that ends FINISHED, FAILED or, by Ctrl-C, KILLED; the tag `failure` says why.

        Under `mlflow run` MLflow 3.17 makes KILLED FAILED afterwards: there the tag alone tells.

        `target`: the run asked for; it adopts `mlflow run`'s. Else `goes_on`: a stopped run's id.
        `once`: end in an OvertakenError where another process makes this run, or has made it.
        """
        self.owners.end_abandoned(at_once=target)
        drawing = {TICKET: DRAWING} if once else {}
        tags = {**tags, **owner_tags(), **drawing}  # those that people read come first
        adopted = self._launched if target else None
        log = self._start(name, tags, target=target, nested_under=nested_under, goes_on=goes_on)
        if target:
            self._target = log.run_id
        try:
            with self.owners.renewing(log.run_id), ending(log):
                if once:
                    take_turn(log, once, self.owners.state_of)
                yield log
        except OvertakenError as first:
            if adopted:
                self._launched = adopted
                log.give_back(tags.keys() - owner_tags().keys())
            elif goes_on:
                log.set_status("FAILED", str(first))
            else:
                log.delete()
            raise
        self.owners.end_abandoned(at_once=False)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Give a run that `mlflow run` started, and nothing adopted, the reason it failed."""
        try:
            with self.owners.owning(self._launched):
                yield
        except (PipelineError, KeyboardInterrupt) as err:
            if self._launched:
                run_id, self._launched = self._launched, None
                self.writing(run_id).set_status(status_of(err), why_ended(err))
            raise

    def name_launched(self, name: str, kind: str, target: str = "") -> None:
        """Name `mlflow run`'s run where a command only reads runs; `target`: the run to show."""
        self._target = target or self._target
        if self._launched:
            run_id, self._launched = self._launched, None
            self.writing(run_id).tags({NAME: name, KIND: kind})

    def _start(
        self, name: str, tags: Tags, *, target: bool, nested_under: str | None, goes_on: str = ""
    ) -> RunLog:
        all_tags = {
            NAME: name,
            "mlflow.source.name": str(PROJECT_DIR),
            "mlflow.source.git.commit": self.git_commit.removesuffix("-dirty"),
            **({NESTED_UNDER: nested_under} if nested_under else {}),
            **tags,
            GIT_COMMIT: self.git_commit,
        }
        behind = sorted(all_tags, key=is_for_programs)  # MLflow shows tags as they came
        all_tags = {stored_tag(key): all_tags[key] for key in behind}
        with translated("start a run", self.uri):
            if target and self._launched:
                run_id, self._launched = self._launched, None
                del all_tags["mlflow.source.name"]  # `mlflow run` knows better
                self._client.log_batch(run_id, tags=to_tags(all_tags))
                known = set(self._client.get_run(run_id).data.params)
            elif goes_on:
                return reopened(self._client, self.uri, goes_on, all_tags)
            else:
                run_id = self._client.create_run(self.experiment_id, tags=all_tags).info.run_id
                known = set()
        return RunLog(self._client, self.uri, run_id, known_params=known, in_background=True)
