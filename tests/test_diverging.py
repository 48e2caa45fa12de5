"""An arm that diverges counts as what it came to; the decision or comparison goes on."""

from __future__ import annotations

from collections.abc import Iterator

import mlflow
import pytest

from pipeline.errors import TrainingError
from tests.comparisons import compare, new_desk
from tests.conftest import inside
from tests.reports import reports
from tests.test_decide import Desk, runs

pytestmark = pytest.mark.slow

NAME = "mobilenet_v3_small"  # the rates are those at which this network diverges
PAIRS = {"backbone": NAME, "looks": "2", "epochs": "1", "batch_size": "2", "norm": "keep"}
HOPELESS = {"stage3.optimizer": "sgd", "stage3.lr": "100", "stage3.weight_decay": "10"}


@pytest.fixture
def desk(tmp_path_factory: pytest.TempPathFactory, empty_database: object) -> Iterator[Desk]:
    desk = new_desk(tmp_path_factory, empty_database)  # type: ignore[arg-type]
    with inside(desk.folder):
        yield desk


def test_a_treatment_that_diverges_recognises_nothing_and_the_control_is_recommended(
    desk: Desk,
) -> None:
    decision = desk.decide(
        **PAIRS, **HOPELESS, **{"control.lr": "0.01", "control.optimizer": "adamw"}
    )
    for pair in decision.pairs:
        assert (pair.treatment.test, pair.treatment.val, pair.treatment.diverged) == (0, 0, True)
        assert not pair.treatment.correct.any()
        assert pair.gain_pp == pytest.approx(-100 * pair.control.test, abs=1e-3)
        run = mlflow.get_run(pair.treatment.run_id)
        assert (run.info.status, run.data.tags["diverged"]) == ("FAILED", "true")
        assert pair.treatment.parameters_trained > pair.control.parameters_trained
        assert pair.treatment.training_s > 0
    notes = [line for line in desk.said if "stage 3 diverged (run" in line]
    assert len(notes) == len(decision.pairs)
    assert all("no image counts as recognised" in line for line in notes)
    assert decision.verdict.state != "justified"
    [made] = runs("decision")
    assert made.info.status == "FINISHED"
    assert made.data.tags["z.champion_run_id"] == decision.pairs[0].control.run_id
    page = reports(made)[1]
    assert page.count("| 0.00% (diverged) |") == len(decision.pairs)
    desk.said.clear()
    again = desk.decide(
        **PAIRS, **HOPELESS, **{"control.lr": "0.01", "control.optimizer": "adamw"}
    )
    assert again.gains_pp == decision.gains_pp


def test_a_treatment_that_never_comes_to_stage_3_has_no_gate_and_the_page_is_written(
    desk: Desk,
) -> None:
    words = {key.replace("stage3", "stage2"): text for key, text in HOPELESS.items()}
    decision = desk.decide(**PAIRS, **words, treatment="three_stage", control="full")
    assert all(pair.treatment.diverged and not pair.control.diverged for pair in decision.pairs)
    [made] = runs("decision")
    assert made.info.status == "FINISHED"
    assert reports(made)[1].count("| 0.00% (diverged) |") == len(decision.pairs)


def test_where_every_arm_diverges_there_is_nothing_to_decide(desk: Desk) -> None:
    with pytest.raises(TrainingError, match=r"no epoch had a finite validation loss: lower stage"):
        desk.decide(**PAIRS, **HOPELESS)
    assert {run.info.status for run in runs("decision")} == {"FAILED"}


def test_a_comparison_says_which_arms_diverged(desk: Desk) -> None:
    words = {key: text for key, text in PAIRS.items() if key != "looks"} | HOPELESS
    compared = compare(desk, schedules="full,three_stage", draws="2", **words)
    full, three = compared.cells_of(NAME)
    assert [result.diverged for result in (*full.results, *three.results)] == [False] * 2 + [
        True
    ] * 2
    assert three.test_pp.tolist() == [0.0, 0.0]
    said = f"Diverged, and counted as recognising no image: {NAME} three_stage (2 of 2 draws)."
    assert said in reports(runs("comparison")[-1])[1]
