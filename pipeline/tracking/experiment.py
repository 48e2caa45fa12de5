"""The experiment that runs are written to: as a launched run or the environment says, and usable.

In: MLFLOW_EXPERIMENT_ID or MLFLOW_EXPERIMENT_NAME, or the experiment of the run that `mlflow run`
started, else the data's name. Out: its id. An experiment in the trash, or with artifacts in a
folder that this machine may not write, is refused here: MLflow itself would refuse it once a stage
is trained.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.errors import TrackingError, first_line
from pipeline.system.network.addresses import why_unwritable, without_password
from pipeline.system.processes import MACHINE
from pipeline.tracking.disk import local_folder
from pipeline.tracking.keys import KIND, stored_tag

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

ID, NAME = "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"
DEFAULT = "0"
_DRIVERS = {
    "s3": "boto3",
    "gs": "google.cloud.storage",
    "wasbs": "azure.storage.blob",
    "abfss": "azure.storage.filedatalake",
    "hdfs": "pyarrow",
    "viewfs": "pyarrow",
    "sftp": "pysftp",
}
"""What MLflow needs for artifacts kept elsewhere, by the scheme of their address."""


def usable_experiment(
    client: MlflowClient, launched: str | None, uri: str, data: str, *, files: bool
) -> list[str]:
    """The ids of the experiments in which finished runs are found, the one to record in first.

    An experiment of a new name is created. `mlflow run` starts runs in `Default` where nobody
    names an experiment, and so did all commands of earlier versions: `Default` and the experiment
    that is called as the data are one place to find runs in.

    `uri`: the store's, without a password. `data`: the name of the data; empty: not known.
    `files`: files will be logged.

    Raises:
        TrackingError: it is not there, was deleted, or its artifacts cannot be written; or the
            launched run is another command's.
    """
    experiment = _experiment(client, launched, uri, data)
    number = str(experiment.experiment_id)
    if not experiment.experiment_id:  # `{}`, whatever is asked
        raise TrackingError(
            f"what answers at {uri} is not an MLflow server: check host, port and path"
        )
    named = f"experiment {experiment.name} (id {number}) at {uri}"
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"{named} was deleted: restore it (`mlflow experiments restore -x {number}`) or name "
            f"another with {NAME}"
        )
    is_meant = launched or data or is_named()
    if files and is_meant:  # else a run's own is taken, once the run is known
        check_files(experiment, uri)
    return [number, *_also(client, number, str(experiment.name), data)]


def is_named() -> bool:
    """Whether a person has said in which experiment runs are recorded."""
    return bool({ID, NAME} & os.environ.keys())


def check_files(experiment: Experiment, uri: str) -> None:
    """Refuse an experiment to which no file can be logged from here.

    Raises:
        TrackingError: says where its files lie, and why they cannot.
    """
    location = str(experiment.artifact_location)
    if why := _why_unusable(location):
        raise TrackingError(
            f"experiment {experiment.name} (id {experiment.experiment_id}) at {uri} keeps its "
            f"artifacts in {without_password(location)}, which cannot be used from here ({why}): "
            f"name another with {NAME}, or let a server serve the artifacts "
            "(`mlflow server --serve-artifacts`)"
        )


def places_of(client: MlflowClient, number: str, data: str) -> list[str]:
    """An experiment, by its id, and where else runs of the data of that name are found."""
    return [number, *_also(client, number, str(client.get_experiment(number).name), data)]


def _also(client: MlflowClient, number: str, name: str, data: str) -> list[str]:
    """Where runs of the same data are found, too."""
    if number == DEFAULT:
        beside = client.get_experiment_by_name(data) if data else None
    else:
        beside = client.get_experiment_by_name("Default") if name == data else None
    is_there = beside and beside.lifecycle_stage == "active"
    return [str(beside.experiment_id)] if beside and is_there else []


def _experiment(client: MlflowClient, launched: str | None, uri: str, data: str) -> Experiment:
    from mlflow.exceptions import MlflowException

    number, name = os.environ.get(ID), os.environ.get(NAME)
    try:
        if launched:
            run = client.get_run(launched)
            _check_launched(run)
            return client.get_experiment(run.info.experiment_id)
        if not number and name:
            return _called(client, name)
        if not number and data:
            return _called(client, data)
        return client.get_experiment(number or DEFAULT)
    except MlflowException as err:
        why = {
            "RESOURCE_DOES_NOT_EXIST": f"there is none at {uri}",
            "INVALID_PARAMETER_VALUE": first_line(err).rstrip("."),
        }.get(err.error_code)
        is_named = launched or number or name or not data
        if why is None or not is_named:
            raise
    what = f"{ID}={number or DEFAULT}" if number or not name else f"{NAME}={name}"
    if launched:
        what = f"MLFLOW_RUN_ID={launched}"
    raise TrackingError(f"{what}: {why}: name one that is there, or unset it")


def _check_launched(run: Run) -> None:
    """Refuse a run that `mlflow run` has not just made: what it holds would be overwritten.

    Raises:
        TrackingError: the run has ended, was deleted, or a command of ours has written to it.
    """
    kind = run.data.tags.get(KIND, "")
    is_ours = kind or {MACHINE, stored_tag(MACHINE)} & run.data.tags.keys()
    is_new = run.info.status in ("RUNNING", "SCHEDULED") and run.info.lifecycle_stage == "active"
    if is_ours or not is_new:
        raise TrackingError(
            f"MLFLOW_RUN_ID={run.info.run_id} is not a run that `mlflow run` has just started "
            f"({kind or 'run'}, {run.info.status}, {run.info.lifecycle_stage}) and would be "
            "overwritten: unset MLFLOW_RUN_ID"
        )


def _called(client: MlflowClient, name: str) -> Experiment:
    """The experiment of a name, created if need be: by one of the commands that ask at once."""
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return found
    with suppress(MlflowException):  # another command has created it meanwhile
        return client.get_experiment(client.create_experiment(name))
    if found := client.get_experiment_by_name(name):
        return found
    return client.get_experiment(client.create_experiment(name))  # and say why not


def _why_unusable(location: str) -> str:
    """Why artifacts cannot be written there; empty if they can, or another machine will tell."""
    if module := _DRIVERS.get(urlsplit(location).scheme):
        try:
            import_module(module)
        except ImportError as err:
            package = module.replace(".", "-")
            return f"its driver is not installed, {first_line(err)}: pip install {package}"
    elif folder := local_folder(location):
        return why_unwritable(folder / "a-new-run", may_make_folders=True)
    return ""
