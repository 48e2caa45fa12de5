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
from tests.conftest import WIDE_NET, inside, words_of
from tests.reports import artifact, reports
from tests.test_decide import (
    Desk,
    check_test_images_unseen,
    check_told_once,
    digests_of_draw,
    runs,
    settings_of,
)

TWO = {"schedules": "head_only", "backbones": f"{NAME}, {WIDE_NET}"}


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
    assert len(second) == len({run.data.tags["z.lineage_key"] for run in second}) == 8
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
    for backbone in (NAME, WIDE_NET):
        for schedule in ("full", "head_only"):
            lasts = found.of(schedule, backbone)
            assert {last.data.tags["z.backbone"] for last in lasts} == {backbone}
            trained = int(lasts[0].data.metrics["parameters/trainable"])
            assert table[backbone, schedule][7] == f"{trained:,}"
        known = Known.by_image(found.pairs("head_only", backbone=backbone))
        check_numbers(run, backbone, "head_only", known)
        assert table[backbone, "head_only"][3] == known.shown()
        sizes.append(f"{backbone} {known.shown().replace(' ', ' pp ', 1)}")
        better, worse = better + (known.p_better >= 0.95), worse + (known.p_worse >= 0.95)
    assert run.data.tags["mlflow.note.content"].startswith(
        f"**head_only against full: {', '.join(sizes)}; better by more than 0.5 pp on {better} "
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
    assert len({stage.data.tags["z.data_sha256"] for stage in stages}) == 2
    check_test_images_unseen(stages, compared.grid.arms[NAME][0].settings, 54)
    rows = {row[1]: row for row in reports(run)[0].tables[0][1:]}
    table = results(run).sort_values("seed")
    by_id = {stage.info.run_id: stage for stage in stages}
    full, head = ([by_id[id_] for id_ in table[table.schedule == name].run_id] for name in rows)
    # three quarters of the 4 of 10 images that are left of each class
    known = Known.by_image(list(zip(head, full, strict=True)), correction=0.3 / 0.7)
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
def test_two_tasks_at_once_come_to_the_same_and_make_no_run_twice(
    desk: Desk, interrupted: Interrupted
) -> None:
    compare(desk, **TWO, workers="2")
    stages, comparisons = runs(), runs("comparison")
    assert len(comparisons) == 1  # tasks have none of their own
    expected = interrupted.comparisons[1]
    assert comparisons[0].data.metrics == pytest.approx(expected.data.metrics)
    columns = ["backbone", "schedule", "draw", "seed", "test_acc", "val_acc"]
    pd.testing.assert_frame_equal(results(comparisons[0])[columns], results(expected)[columns])
    keys = Counter(run.data.tags["z.lineage_key"] for run in stages)
    assert keys == Counter(run.data.tags["z.lineage_key"] for run in interrupted.after[1])
    parents = {run.data.tags["mlflow.parentRunId"] for run in stages}
    assert parents == {comparisons[0].info.run_id}
    check_told_once(desk.said, f"{NAME}, draw ", len(results(expected).draw.unique()))


@pytest.mark.slow
def test_tuned_arms_are_compared_at_equal_steps_on_draws_that_no_study_has_seen(
    desk: Desk,
) -> None:
    words = {"tuned": "on", "n_trials": "3", "margin": "0", "lr": "0.02"}
    words["schedules"] = "full,three_stage,lp_ft"
    compared, stages, run = compare(desk, **words), runs(), runs("comparison")[0]
    assert [key.draw for key in compared.keys] == [1, 2]
    drawn: dict[str, set[str]] = {"0": set(), "1": set(), "2": set()}
    for stage in stages:
        drawn[stage.data.tags["draw"]] |= digests_of_draw(
            settings_of(stage), stage.data.tags["z.data_sha256"]
        )
        assert (stage.data.params["lr"], stage.data.params["batch_size"]) == ("0.02", "8")
    assert [len(images) for images in drawn.values()] == [18, 18, 18]
    assert len(drawn["0"] | drawn["1"] | drawn["2"]) == 54
    whole = [stage for stage in stages if stage.info.status == "FINISHED"]  # others are pruned
    assert len(whole) > 2 * (1 + 3 + 1)
    check_test_images_unseen(whole, settings_of(stages[0]), 30)
    epochs = {
        arm.name: [arm.settings.training(n).epochs for n in range(1, arm.last + 1)]
        for arm in compared.grid.arms[NAME]
    }
    assert epochs == {"full": [3], "three_stage": [1, 1, 1], "lp_ft": [1, 2]}

    names = {schedule: found for (_, schedule), found in compared.studies.items()}
    assert len({name for found in names.values() for name in found}) == 1 + 3 + 2
    url = f"sqlite:///{desk.folder}/optuna.db"
    trials = {
        schedule: [len(optuna.load_study(study_name=n, storage=url).trials) for n in found]
        for schedule, found in names.items()
    }
    assert trials == {"full": [3], "three_stage": [1, 1, 1], "lp_ft": [2, 2]}
    shown = reports(run)[0].tables[-1][1:]
    assert shown == [[NAME, schedule, ", ".join(found)] for schedule, found in names.items()]

    again = compare(desk, **words)
    assert len(runs()) == len(stages)
    assert (again.studies, again.grid) == (compared.studies, compared.grid)
    assert runs("comparison")[-1].data.metrics == pytest.approx(run.data.metrics)
