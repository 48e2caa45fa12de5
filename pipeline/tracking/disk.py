"""What runs occupy on this machine's disk, and taking that back.

In: MLflow's client. Out: a `StoredRun` for each run of ours with artifacts in local folders, in
every experiment, and what it is: `trials` of studies, `failed`, `deleted`, or `kept`. Artifacts on
a server or in a bucket are not seen: `mlflow gc` is for these.

What is kept, whatever is asked: runs that are being written, runs that another finished run names
as its parent or `main` as its stages, runs behind registered models, trials that `main` or
`decide` have completed, trials that were scored on test images, as pairs are, and runs that no
command of ours has made.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pipeline.tracking.connection.faults import translated
from pipeline.tracking.keys import (
    COMPLETED,
    FAILURE,
    IS_TRIAL,
    KIND,
    NESTED_UNDER,
    PARENT_RUN_ID,
    TEST,
    tags_as_named,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TRIALS, FAILED, DELETED, KEPT = "trials", "failed", "deleted", "kept"
_NAMES_A_RUN = re.compile(rf"{PARENT_RUN_ID}|stage\d+_run_id")


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """A run's files.

    Attributes:
        what: `TRIALS`, `FAILED`, `DELETED` or `KEPT`.
        folders: its artifacts and its logged models; those that are there.
        models: ids of its logged models.
    """

    run_id: str
    what: str
    folders: tuple[Path, ...]
    models: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """What the folders hold."""
        return sum(map(size_of, self.folders))


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where it is not there."""
    found = 0
    for path in folder.rglob("*"):
        try:
            found += 0 if path.is_symlink() or path.is_dir() else path.stat().st_size
        except OSError:  # gone meanwhile
            continue
    return found


def stored_runs(client: MlflowClient, uri: str) -> list[StoredRun]:
    """Every run of ours with files on this machine."""
    from mlflow.entities import ViewType

    with translated("list runs", uri):
        experiments = _all(lambda n, t: client.search_experiments(ViewType.ALL, n, page_token=t))
        ids = [str(experiment.experiment_id) for experiment in experiments]
        runs: list[Run] = _all(
            lambda n, t: client.search_runs(
                ids, run_view_type=ViewType.ALL, max_results=n, page_token=t
            )
        )
        logged = _all(lambda n, t: client.search_logged_models(ids, max_results=n, page_token=t))
        versions = _all(lambda n, t: client.search_model_versions(max_results=n, page_token=t))
    models: dict[str, list[Any]] = {}
    for model in logged:
        models.setdefault(str(model.source_run_id), []).append(model)
    needed = {str(version.run_id) for version in versions} | set(_named(runs))
    kinds = {run.info.run_id: run.data.tags.get(KIND, "") for run in runs}
    found = [
        StoredRun(
            run_id=run.info.run_id,
            what=KEPT if run.info.run_id in needed else _what(run, kinds),
            folders=tuple(_folders(run, models.get(run.info.run_id, []))),
            models=tuple(model.model_id for model in models.get(run.info.run_id, [])),
        )
        for run in runs
        if {KIND, FAILURE} & run.data.tags.keys()
    ]
    return [run for run in found if run.folders]


def discard(client: MlflowClient, uri: str, run: StoredRun) -> None:
    """Mark a run and its models as deleted, then remove their files."""
    assert run.what in (TRIALS, FAILED)
    with translated(f"delete run {run.run_id}", uri):
        now = client.get_run(run.run_id)
        if now.info.status in ("RUNNING", "SCHEDULED"):  # begun again since
            return
        for model in run.models:
            client.delete_logged_model(model)
        client.delete_run(run.run_id)
        for folder in run.folders:
            shutil.rmtree(folder)


def _named(runs: Iterable[Run]) -> Iterator[str]:
    """Runs that finished or running ones continue from, or that `main` lists as its stages."""
    for run in runs:
        if run.info.lifecycle_stage == "active" and run.info.status not in ("FAILED", "KILLED"):
            yield from (v for tag, v in run.data.tags.items() if _NAMES_A_RUN.fullmatch(tag))


def _what(run: Run, kinds: dict[str, str]) -> str:
    tags, status = tags_as_named(run.data.tags), run.info.status
    if status not in ("FINISHED", "FAILED", "KILLED"):
        return KEPT
    if run.info.lifecycle_stage != "active":
        return DELETED
    if status != "FINISHED":
        return FAILED
    of_study = kinds.get(tags.get(NESTED_UNDER, "")) in ("study", "trial")
    is_trial = tags.get(KIND) == "stage" and IS_TRIAL in tags and COMPLETED not in tags
    is_pair = TEST["acc"] in run.data.metrics  # no study scores test images
    return TRIALS if is_trial and of_study and not is_pair else KEPT


def _folders(run: Run, models: Iterable[Any]) -> Iterator[Path]:
    """Local folders that are this run's alone: the run's or the model's id is in their paths."""
    places = [(run.info.run_id, run.info.artifact_uri)]
    places += [(model.model_id, model.artifact_location) for model in models]
    for name, uri in places:
        folder = local_folder(str(uri))
        if folder and name in folder.parts and folder.is_dir():
            yield folder


def copied(uri: str, artifact: str, folder: Path) -> Path | None:
    """A copy of an artifact whose files lie here, which takes MLflow 80 ms; None: ask MLflow."""
    place = local_folder(uri)
    if place is None:
        return None
    try:
        return Path(shutil.copy(place / artifact, folder))
    except OSError:
        return None


def local_folder(uri: str) -> Path | None:
    """The folder that an address of artifacts means; None where that is elsewhere."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file") or parts.netloc or not parts.path:
        return None
    return Path(unquote(parts.path) if parts.scheme else uri)


def _all(ask: Any) -> list[Any]:  # noqa: ANN401 - MLflow's own pages
    from mlflow.utils import get_results_from_paginated_fn

    found: list[Any] = get_results_from_paginated_fn(ask, 100)  # type: ignore[no-untyped-call]
    return found
