"""Runs are found by the names that their tags have today, and had in earlier versions."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from pipeline.tracking import Tracking
from pipeline.tracking.keys import KIND, LINEAGE_KEY, RECIPE_KEY, stored_tag

WANTED = {KIND: "stage", LINEAGE_KEY: "a key"}


def make(tags: dict[str, str]) -> str:
    run = mlflow.MlflowClient().create_run("0", tags=tags)
    mlflow.MlflowClient().set_terminated(run.info.run_id)
    return str(run.info.run_id)


def of_today(tags: dict[str, str]) -> dict[str, str]:
    return {stored_tag(key): value for key, value in tags.items()}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The filters of all searches."""
    filters: list[str] = []
    search = mlflow.MlflowClient.search_runs

    def counted(
        client: mlflow.MlflowClient, places: list[str], wanted: str, **rest: object
    ) -> object:
        filters.append(wanted)
        return search(client, places, wanted, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(mlflow.MlflowClient, "search_runs", counted)
    return filters


def test_a_store_of_this_version_is_searched_once(store: Path, asked: list[str]) -> None:
    run_id = make(of_today(WANTED))
    tracking = Tracking.connect()
    asked.clear()
    for _ in range(3):
        assert [run.run_id for run in tracking.find(WANTED)] == [run_id]
    assert len(asked) == 4  # the first looks for tags of the former name
    assert tracking.find({KIND: "stage", RECIPE_KEY: "none"}) == []
    assert len(asked) == 6


def test_runs_of_both_versions_are_found_oldest_first(store: Path, asked: list[str]) -> None:
    runs = [make(WANTED), make(of_today(WANTED)), make(WANTED)]
    make({**WANTED, LINEAGE_KEY: "another"})
    tracking = Tracking.connect()
    assert [run.run_id for run in tracking.find(WANTED)] == runs
    asked.clear()
    assert [run.run_id for run in tracking.find(WANTED, status=None)] == runs
    assert len(asked) == 2
