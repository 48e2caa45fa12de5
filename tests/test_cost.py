"""What a draw will take is told from earlier runs, else measured, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from pipeline.comparing.arms import Arm
from pipeline.comparing.cost import seconds_a_draw
from pipeline.settings.layers import Layer, resolve
from pipeline.tracking import Tracking
from tests.conftest import TINY, Command
from tests.test_run_stage import runs

SMALL = {"train_per_class": "3", "val_per_class": "3"}  # two draws


@pytest.fixture
def arm(store: Path, image_folder: Path) -> Arm:
    place = {"data": str(image_folder), "cache_dir": str(store / "cache"), "draw": "1"}
    settings = resolve(
        [Layer(source="test", values={**TINY, **SMALL, **place, "schedule": "three_stage"})]
    )
    return Arm(name="three_stage", settings=settings, last=2)


def test_an_estimate_leaves_no_run_and_nothing_in_the_prefix_cache(arm: Arm, store: Path) -> None:
    assert 1 < seconds_a_draw([arm], 10, Tracking.connect())[0] < 600
    assert not (store / "cache" / "prefix").exists()
    assert mlflow.search_runs(["0"], output_format="list") == []


def test_a_stage_takes_as_long_as_its_runs_on_other_draws_did_here(
    arm: Arm, command: Command
) -> None:
    assert command("stage1", **SMALL) == 0
    client, run_id = mlflow.MlflowClient(), runs()["run_id"][0]
    client.log_metric(run_id, "time/total_s", 5000.0)
    client.log_metric(run_id, "time/prefix_s", 1000.0)
    assert 4000 < seconds_a_draw([arm], 10, Tracking.connect())[0] < 4600
    client.set_tag(run_id, "z.owner.machine", "another boot")
    assert seconds_a_draw([arm], 10, Tracking.connect())[0] < 600
