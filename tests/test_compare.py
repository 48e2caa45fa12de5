"""Comparisons end to end: real images, training and MLflow; numbers computed again by hand."""

from __future__ import annotations

import contextlib
import sqlite3
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from pipeline.runs.findings.predictions import TEST_PREDICTIONS
from pipeline.tracking.keys import PEAK_MIB
from tests.comparisons import NAME, Finished, Known, check_numbers, compare, new_desk, results
from tests.conftest import inside
from tests.reports import artifact, reports, tables_of_markdown
from tests.test_decide import (
    acc,
    chain,
    check_test_images_unseen,
    digests_of_draw,
    epochs_of,
    runs,
    settings_of,
)

SCHEDULES = ("full", "two_stage", "three_stage", "lp_ft")


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Finished:
    desk = new_desk(tmp_path_factory, empty_database)
    with inside(desk.folder):
        compare(desk)
        return Finished(desk, runs("comparison")[0], runs())


@pytest.fixture
def finished(finished_once: Finished) -> Iterator[Finished]:
    with inside(finished_once.desk.folder):
        yield finished_once


def test_a_run_whose_predictions_may_not_be_written_is_compared_and_said(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> None:
    """As in a folder of another person's."""
    desk = new_desk(tmp_path_factory, empty_database)
    with inside(desk.folder):
        first = compare(desk, schedules="full,head_only")
        run = runs()[0]
        theirs, predictions = run.info.run_id, artifact(run, TEST_PREDICTIONS)
        predictions.unlink()
        (predictions / predictions.name).mkdir(parents=True)
        mlflow.MlflowClient().set_tag(theirs, "z.test_sha256", "unknown")
        desk.said.clear()
        again = compare(desk, schedules="full,head_only")
        (note,) = [line for line in desk.said if "is not brought up to date" in line]
        assert note.startswith(f"note: run {theirs} (")
        assert [cell.results for cell in again.cells] == [cell.results for cell in first.cells]
        tags = mlflow.get_run(theirs).data.tags
        assert len(tags["z.test_sha256"]) == 64


def test_stage_runs_are_nested_in_the_one_run_of_the_comparison(finished: Finished) -> None:
    assert len(runs("comparison")) == 1
    parents = {run.data.tags["mlflow.parentRunId"] for run in finished.stages}
    assert parents == {finished.run.info.run_id}
    assert {run.info.status for run in (finished.run, *finished.stages)} == {"FINISHED"}
    params = finished.run.data.params
    assert (params["baseline"], params["draws"], params["backbones"]) == ("full", "2", NAME)
    assert params["schedules"] == ",".join(SCHEDULES)
    assert not {name for name in params if name.startswith("stage")}, "settings of one arm only"


def test_every_arm_has_the_same_images_and_seed_on_a_draw(finished: Finished) -> None:
    seen: set[str] = set()
    for draw, row in enumerate(zip(*map(finished.of, SCHEDULES), strict=True)):
        for run in (one for last in row for one in chain(last, finished.stages)):
            assert (run.data.tags["draw"], run.data.tags["seed"]) == (str(draw), str(draw))
        assert len({run.data.tags["z.data_sha256"] for run in row}) == 1
        assert len({run.data.tags["z.checkpoint_sha256"] for run in row}) == len(SCHEDULES)
        drawn = digests_of_draw(settings_of(row[0]), row[0].data.tags["z.data_sha256"])
        assert not seen & drawn
        seen |= drawn
    assert len(seen) == 2 * 3 * (4 + 2)


def test_a_stage_that_two_schedules_share_is_one_run(finished: Finished) -> None:
    for ours, theirs in zip(finished.of("three_stage"), finished.of("lp_ft"), strict=True):
        first, other = (chain(run, finished.stages)[-1] for run in (ours, theirs))
        assert first.info.run_id == other.info.run_id
        assert (first.data.tags["stage"], first.data.tags["z.trains"]) == ("1", "head")
    assert len(finished.stages) == 2 * (1 + 2 + 3 + 1)
    keys = Counter(run.data.tags["z.lineage_key"] for run in finished.stages)
    assert set(keys.values()) == {1}


def test_every_arm_has_the_same_optimizer_steps_by_its_runs_own_parameters(
    finished: Finished,
) -> None:
    for schedule in SCHEDULES:
        for last in finished.of(schedule):
            stages = chain(last, finished.stages)
            steps = 0
            for run in stages:
                assert epochs_of(run) == int(run.data.params["epochs"])
                images, size = 3 * 4, int(run.data.params["batch_size"])
                steps += epochs_of(run) * -(-images // size)
            assert steps == 6
    assert "every arm has 6 optimizer steps" in reports(finished.run)[1]


def test_no_run_was_trained_or_chosen_on_an_image_that_it_was_scored_on(
    finished: Finished,
) -> None:
    check_test_images_unseen(finished.stages, settings_of(finished.stages[0]), 30)


def test_the_table_of_results_is_what_the_runs_carry(finished: Finished) -> None:
    table = results(finished.run)
    assert list(table.schedule) == [name for name in SCHEDULES for _ in range(2)]
    for row in table.itertuples():
        last = finished.of(str(row.schedule))[int(str(row.draw))]
        stages = chain(last, finished.stages)
        prefix = sum(run.data.metrics["time/prefix_s"] for run in stages)
        total = sum(run.data.metrics["time/total_s"] for run in stages)
        assert row.test_acc == pytest.approx(acc(last))
        assert row.val_acc == pytest.approx(last.data.metrics["selected/val_acc"])
        trained = max(run.data.metrics["parameters/trainable"] for run in stages)
        assert row.parameters_trained == trained
        assert row.prefix_s == pytest.approx(prefix, abs=6e-3)
        assert row.training_s == pytest.approx(total - prefix, abs=6e-3)
        peak = max(run.data.metrics[PEAK_MIB] for run in stages)
        assert 50 < peak < 100_000
        assert row.peak_mib == pytest.approx(peak, abs=0.06)


def test_differences_and_probabilities_follow_from_the_runs_accuracies(
    finished: Finished,
) -> None:
    assert len({acc(run) for name in SCHEDULES for run in finished.of(name)}) > 2
    for name in SCHEDULES:
        mean = statistics.mean(acc(run) for run in finished.of(name))
        found = finished.run.data.metrics[f"test_acc/{NAME}/{name}"]
        assert found == pytest.approx(mean, rel=1e-5)
        if name != "full":
            check_numbers(finished.run, NAME, name, Known.by_image(finished.pairs(name)))
    assert f"difference_pp/{NAME}/full" not in finished.run.data.metrics


def test_the_report_shows_every_schedule_and_all_their_differences(finished: Finished) -> None:
    page, markdown = reports(finished.run)
    assert page.tables == tables_of_markdown(markdown)
    assert artifact(finished.run, "figures/comparison.png").stat().st_size > 10_000
    table = {row[1]: row for row in page.tables[0][1:]}
    assert list(table) == list(SCHEDULES)
    assert table["full"][3:7] == ["", "", "", ""]
    matrix = page.tables[1]
    assert matrix[0] == ["", *SCHEDULES]
    for row in matrix[1:]:
        known = Known.of([100 * acc(run) for run in finished.of(row[0])])
        accuracy = f"{known.mean:.2f}% ({max(known.low, 0):.2f} to {min(known.high, 100):.2f})"
        assert table[row[0]][2] == accuracy
        for column, cell in zip(SCHEDULES, row[1:], strict=True):
            if column == row[0]:
                assert cell == ""
                continue
            known = Known.by_image(finished.pairs(row[0], column))
            assert cell == f"{known.shown()}, P {known.p_positive:.3f}"
            if column == "full":
                inside_rope = 1 - known.p_better - known.p_worse
                shown = [f"{p:.3f}" for p in (known.p_better, inside_rope, known.p_worse)]
                assert table[row[0]][3:7] == [known.shown(), *shown]


def test_what_it_costs_is_said_before_anything_is_run(finished: Finished) -> None:
    said, then = finished.desk.said, finished.desk.runs_then
    assert said[0] == (
        f"full, two_stage, three_stage, lp_ft on {NAME}: 6 optimizer steps, 2 draws; pairs are "
        "disjoint draws, of 3 that the pool holds; accuracy on 30 test images"
    )
    first = next(n for n, line in enumerate(said) if line.startswith(f"{NAME}, draw 0, seed 0: "))
    assert "a draw takes about" in said[1]
    cost = next(n for n, line in enumerate(said) if line.startswith("all of it takes about"))
    assert then[: cost + 1] == [0] * (cost + 1)
    assert then[first] == 1 + 7
    shown = ", ".join(f"{name} {acc(finished.of(name)[0]):.2%}" for name in SCHEDULES)
    assert said[first].endswith(shown)


def test_the_same_comparison_again_trains_nothing_and_shows_the_same(finished: Finished) -> None:
    before = {run.info.run_id for run in runs()}
    again = compare(finished.desk, rope_pp="20", baseline="lp_ft")
    assert {run.info.run_id for run in runs()} == before
    run = runs("comparison")[-1]
    for name in SCHEDULES[:3]:
        known = Known.by_image(finished.pairs(name, "lp_ft"), rope=20)
        check_numbers(run, NAME, name, known)
    assert [cell.arm.name for cell in again.cells] == ["lp_ft", *SCHEDULES[:3]]
    columns = ["test_acc", "val_acc", "parameters_trained", "run_id"]
    old, new = (results(one).sort_values(["schedule", "draw"]) for one in (finished.run, run))
    assert old[columns].to_numpy().tolist() == new[columns].to_numpy().tolist()


def test_a_peak_is_unknown_where_a_run_of_the_chain_has_none(finished: Finished) -> None:
    """Runs of an earlier version, or of another system, say nothing of it."""
    first = chain(finished.of("lp_ft")[0], finished.stages)[-1].info.run_id
    with contextlib.closing(sqlite3.connect(finished.desk.folder / "mlflow.db")) as database:
        words = "DELETE FROM latest_metrics WHERE key = ? AND run_uuid = ?"
        database.execute(words, (PEAK_MIB, first))
        database.commit()
    compare(finished.desk)
    run = runs("comparison")[-1]
    unknown = {
        (str(row.schedule), row.draw) for row in results(run).itertuples() if pd.isna(row.peak_mib)
    }
    assert unknown == {("lp_ft", 0), ("three_stage", 0)}
    shown = {row[1]: row[-1] for row in reports(run)[0].tables[0][1:]}
    assert [shown[name] == "" for name in SCHEDULES] == [False, False, True, True]
    mlflow.MlflowClient().log_metric(first, PEAK_MIB, 1.0)
