"""What a chain recommends."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.entries.chain import best_of
from pipeline.entries.command_line.table import ENTRY_POINTS
from pipeline.runs.sources import source_of
from pipeline.tracking.history import Summary
from pipeline.tracking.keys import VAL
from tests.conftest import Command
from tests.helpers import typed_in
from tests.test_run_stage import runs


def reached(number: int, **val: float) -> Summary:
    return Summary(
        number=number,
        trains=("head",),
        run_id=f"run{number}",
        reused=False,
        epoch=1,
        metrics={VAL[name]: value for name, value in val.items()},
        wall_s=1.0,
        trainable_parameters=1,
    )


@pytest.mark.parametrize(
    ("select", "best"), [("val_acc", 2), ("val_loss", 3), ("val_balanced_acc", 1)]
)
def test_the_model_to_use_is_the_best_stage_by_what_selects_epochs(select: str, best: int) -> None:
    rows = [
        reached(1, acc=0.70, loss=1.2, balanced_acc=0.8),
        reached(2, acc=0.75, loss=1.1, balanced_acc=0.7),
        reached(3, acc=0.72, loss=1.0, balanced_acc=0.6),
    ]
    assert best_of(rows, select).number == best


def test_of_equal_stages_the_earlier_is_used_and_runs_of_old_go_by_accuracy() -> None:
    same = [reached(n, acc=0.7, loss=1.0) for n in (1, 2)]
    assert best_of(same, "val_acc").number == 1
    old = [reached(1, acc=0.8), reached(2, acc=0.7)]
    assert best_of(old, "val_loss").number == 1


def proposed(out: str) -> dict[str, str]:
    """The options of the decision that is proposed."""
    [line] = re.findall("^next: .*", out, re.MULTILINE)
    name, options = typed_in(line)
    assert name == "decide"
    return options


@pytest.mark.parametrize(
    ("given", "apart"),
    [
        ({}, "4"),
        ({"test_per_class": "2"}, "2"),
        ({"draw": "1", "train_per_class": "4", "val_per_class": "2"}, "6"),  # of draw 0
        ({"train_per_class": "6", "val_per_class": "6"}, "auto"),  # nothing is left
    ],
)
def test_a_proposed_decision_sets_test_images_aside_where_the_data_has_none(
    command: Command,
    image_folder: Path,
    capfd: pytest.CaptureFixture[str],
    given: dict[str, str],
    apart: str,
) -> None:
    """Numbers of training and validation images leave the rest aside, and none to score on."""
    options = {"data": str(image_folder), "stage2.epochs": "1", "stage3.epochs": "1", **given}
    assert command("stage3", **options) == 0
    out = capfd.readouterr().out
    decision = proposed(out)
    assert decision["test_per_class"] == apart
    assert (decision.get("train_per_class") == "auto") == (apart == "auto")
    plan = ENTRY_POINTS["decide"].plan(ENTRY_POINTS["decide"].read(decision))
    assert source_of(plan.treatment.settings).test is not None
    [line] = re.findall("^next: (.*)", out, re.MULTILINE)
    last = max(runs().to_dict("records"), key=lambda run: run["tags.stage"])
    assert f"`{line}`" in last["tags.mlflow.note.content"]  # and what a run says of itself


@pytest.mark.parametrize("asked", ["auto", "source", "target"])
def test_a_proposed_decision_has_the_norm_stats_that_were_asked_for(
    command: Command, capfd: pytest.CaptureFixture[str], asked: str
) -> None:
    once = {f"stage{n}.epochs": "1" for n in (2, 3)}
    assert command("stage2", norm_stats=asked, **once) == 0
    [parent] = re.findall(r"parent_run_id=(\w+)", capfd.readouterr().out)
    assert command("stage3", parent_run_id=parent, norm_stats=asked, **once) == 0
    expected = {} if asked == "auto" else {"norm_stats": asked}
    options = proposed(capfd.readouterr().out)
    assert {k: v for k, v in options.items() if k == "norm_stats"} == expected
    assert main(["gate", "--run_id", parent]) == 0
    told = re.findall(r"-P norm_stats=(\w+)", capfd.readouterr().out)
    assert told == list(expected.values())
