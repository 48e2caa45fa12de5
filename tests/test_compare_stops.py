"""Comparisons that stop and go on, share a small pool, are divided or tuned; what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import optuna
import pandas as pd
import pytest
from mlflow.entities import Run

from pipeline.cli import main
from pipeline.comparing.arms import Arm
from pipeline.comparing.results import Compared
from tests.comparisons import (
    NAME,
    OWN,
    Finished,
    Known,
    check_numbers,
    compare,
    new_desk,
    results,
)
from tests.conftest import words_of
from tests.reports import artifact, reports
from tests.test_decide import (
    Desk,
    check_test_images_unseen,
    check_told_once,
    digests_of_draw,
    inside,
    runs,
    settings_of,
)

TWO = {"schedules": "head_only", "backbones": f"{NAME}, mobilenet_v2"}


@pytest.fixture
def desk(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Desk]:
    """An empty store."""
    empty = new_desk(tmp_path_factory, empty_database)
    with inside(empty.folder):
        yield empty


@dataclass
class Interrupted:
    """Two backbones, stopped after the first draw of the first, gone on with."""

    desk: Desk
    after: list[list[Run]]
    comparisons: list[Run]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Interrupted:
    desk = new_desk(tmp_path_factory, empty_database)
    with inside(desk.folder):
        with pytest.raises(KeyboardInterrupt, match="stopped by the test"):
            compare(desk, f"{NAME}, draw 0", **TWO)
        first = runs()
        compare(desk, **TWO)
        return Interrupted(desk, [first, runs()], runs("comparison"))


def test_a_stopped_comparison_goes_on_and_trains_nothing_twice(interrupted: Interrupted) -> None:
    first, second = interrupted.after
    assert [run.data.tags["schedule"] for run in first] == ["full", "head_only"]
    assert [run.info.run_id for run in second[:2]] == [run.info.run_id for run in first]
    assert len(second) == len({run.data.tags["lineage_key"] for run in second}) == 8
    assert [run.info.status for run in interrupted.comparisons] == ["KILLED", "FINISHED"]
    parents = [run.data.tags["mlflow.parentRunId"] for run in second]
    ids = [run.info.run_id for run in interrupted.comparisons]
    assert parents == [ids[0]] * 2 + [ids[1]] * 6


def test_each_backbone_has_its_own_rows_and_a_place_in_the_summary(
    interrupted: Interrupted,
) -> None:
    run, stages = interrupted.comparisons[1], interrupted.after[1]
    found = Finished(interrupted.desk, run, stages)
    sizes, table = [], {tuple(row[:2]): row for row in reports(run)[0].tables[0][1:]}
    better, worse = 0, 0
    for backbone in (NAME, "mobilenet_v2"):
        for schedule in ("full", "head_only"):
            lasts = found.of(schedule, backbone)
            assert {last.data.tags["backbone"] for last in lasts} == {backbone}
            trained = int(lasts[0].data.metrics["parameters/trainable"])
            assert table[backbone, schedule][7] == f"{trained:,}"
        known = Known.of(found.differences_pp("head_only", backbone=backbone))
        check_numbers(run, backbone, "head_only", known)
        assert table[backbone, "head_only"][3] == known.shown()
        sizes.append(f"{backbone} {known.mean:+.2f} pp ({known.low:+.2f} to {known.high:+.2f})")
        better, worse = better + (known.p_better >= 0.95), worse + (known.p_worse >= 0.95)
    assert run.data.tags["mlflow.note.content"] == (
        f"- head_only against full: {', '.join(sizes)}; better by more than 0.5 pp on {better} "
        f"of 2 backbones, worse on {worse} (posterior probability 0.95 or more)"
    )


def test_a_pool_too_small_is_resampled_and_says_what_that_costs(desk: Desk) -> None:
    compared = compare(desk, schedules="full,head_only", test_per_class="18")
    said = (
        "the pool holds 1 disjoint draw, 2 are needed: pairs are resampled and share images "
        "(40% of two draws, on average), which costs power"
    )
    run, stages = runs("comparison")[0], runs()
    assert said in desk.said[0]
    assert said in artifact(run, "report.md").read_text()
    assert len({stage.data.tags["data_sha256"] for stage in stages}) == 2
    check_test_images_unseen(stages, compared.grid.arms[NAME][0].settings, 54)
    rows = {row[1]: row for row in reports(run)[0].tables[0][1:]}
    table = results(run).sort_values("seed")
    by_seed = [100 * table[table.schedule == name].test_acc.to_numpy() for name in rows]
    known = Known.of(list(by_seed[1] - by_seed[0]), correction=0.4 / 0.6)
    check_numbers(run, NAME, "head_only", known)
    assert rows["head_only"][3] == known.shown()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"test_per_class": "0"}, "has no test split"),
        ({"train_per_class": "400"}, "for train_per_class + val_per_class = 402"),
        ({"epochs": "10", "stage3.batch_size": "12"}, "arms would not have equal optimizer steps"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_no_run(
    desk: Desk, capfd: pytest.CaptureFixture[str], words: dict[str, str], message: str
) -> None:
    assert main(words_of("compare", {**desk.own, **OWN, **words})) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert mlflow.search_runs(["0"], output_format="list") == []


@pytest.mark.slow
def test_two_workers_come_to_the_same_and_make_no_run_twice(
    desk: Desk, interrupted: Interrupted
) -> None:
    compare(desk, **TWO, workers="2")
    stages, comparisons = runs(), runs("comparison")
    assert len(comparisons) == 1  # workers have none of their own
    expected = interrupted.comparisons[1]
    assert comparisons[0].data.metrics == pytest.approx(expected.data.metrics)
    columns = ["backbone", "schedule", "draw", "seed", "test_acc", "val_acc"]
    pd.testing.assert_frame_equal(results(comparisons[0])[columns], results(expected)[columns])
    keys = Counter(run.data.tags["lineage_key"] for run in stages)
    assert keys == Counter(run.data.tags["lineage_key"] for run in interrupted.after[1])
    parents = {run.data.tags["mlflow.parentRunId"] for run in stages}
    assert parents == {comparisons[0].info.run_id}
    check_told_once(desk.said, f"{NAME}, draw ", len(results(expected).draw.unique()))


@dataclass
class Tuned:
    """A comparison of tuned arms, one setting of which was set by hand."""

    desk: Desk
    compared: Compared
    stages: list[Run]
    run: Run

    @property
    def arms(self) -> dict[str, Arm]:
        return {arm.name: arm for arm in self.compared.grid.arms[NAME]}


TUNED = {"tuned": "on", "n_trials": "6", "margin": "0", "lr": "0.02"}
TUNED |= {"schedules": "full,three_stage,lp_ft"}


@pytest.fixture(scope="module")
def tuned_once(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Tuned:
    desk = new_desk(tmp_path_factory, empty_database)
    with inside(desk.folder):
        return Tuned(desk, compare(desk, **TUNED), runs(), runs("comparison")[0])


@pytest.fixture
def tuned(tuned_once: Tuned) -> Iterator[Tuned]:
    with inside(tuned_once.desk.folder):
        yield tuned_once


@pytest.mark.slow
def test_tuned_arms_are_compared_on_draws_that_no_study_has_seen(tuned: Tuned) -> None:
    assert [key.draw for key in tuned.compared.keys] == [1, 2]
    drawn: dict[str, set[str]] = {"0": set(), "1": set(), "2": set()}
    for run in tuned.stages:
        drawn[run.data.tags["draw"]] |= digests_of_draw(
            settings_of(run), run.data.tags["data_sha256"]
        )
    assert [len(images) for images in drawn.values()] == [18, 18, 18]
    assert len(drawn["0"] | drawn["1"] | drawn["2"]) == 54
    whole = [run for run in tuned.stages if run.info.status == "FINISHED"]  # others are pruned
    assert len(whole) > 2 * (1 + 3 + 1)
    check_test_images_unseen(whole, settings_of(tuned.stages[0]), 30)


@pytest.mark.slow
def test_tuning_changes_neither_steps_nor_what_was_set_by_hand(tuned: Tuned) -> None:
    epochs = {
        name: [arm.settings.training(n).epochs for n in range(1, arm.last + 1)]
        for name, arm in tuned.arms.items()
    }
    assert epochs == {"full": [3], "three_stage": [1, 1, 1], "lp_ft": [1, 2]}
    for arm in tuned.arms.values():
        for number in range(1, arm.last + 1):
            training = arm.settings.training(number)
            assert (training.lr, training.batch_size) == (0.02, 8)
    for run in tuned.stages:
        assert (run.data.params["lr"], run.data.params["batch_size"]) == ("0.02", "8")


@pytest.mark.slow
def test_trials_are_shared_out_over_an_arms_stages(tuned: Tuned) -> None:
    studies = tuned.compared.studies
    names = {schedule: found for (_, schedule), found in studies.items()}
    assert len({name for found in names.values() for name in found}) == 1 + 3 + 2
    url = f"sqlite:///{tuned.desk.folder}/optuna.db"
    trials = {
        schedule: [len(optuna.load_study(study_name=n, storage=url).trials) for n in found]
        for schedule, found in names.items()
    }
    assert trials == {"full": [6], "three_stage": [2, 2, 2], "lp_ft": [3, 3]}
    shown = reports(tuned.run)[0].tables[-1][1:]
    assert shown == [[NAME, schedule, ", ".join(found)] for schedule, found in names.items()]


@pytest.mark.slow
def test_the_same_tuned_comparison_again_trains_nothing(tuned: Tuned) -> None:
    again = compare(tuned.desk, **TUNED)
    assert len(runs()) == len(tuned.stages)
    assert again.studies == tuned.compared.studies
    assert again.grid == tuned.compared.grid
    assert runs("comparison")[-1].data.metrics == pytest.approx(tuned.run.data.metrics)
