"""The gate's readings and its prior, from planted results; the reference user's own two lines."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.entries.command_line.table import ENTRY_POINTS
from pipeline.entries.gate import _draws_in, _next
from pipeline.errors import GateError
from pipeline.runs.sources import source_of
from pipeline.settings.thresholds import Thresholds
from pipeline.signals.cases import CASES, cases_like
from pipeline.signals.gate import (
    Gate,
    GateDraw,
    gate_of_run,
    last_fifth_span,
    parse_best_lines,
    read_gate,
    report_markdown,
)
from pipeline.tracking import Tracking
from pipeline.tracking.keys import (
    EPOCH_METRICS,
    PARENT_VAL_ACC,
    POOL,
    SELECTED_EPOCH,
    TRAIN_ACC,
    TRAIN_LOSS,
    VAL_ACC,
    VAL_LOSS,
    at_best,
    current,
)
from tests.helpers import load_settings, typed_in

T = Thresholds()
FLAT = [1.5, 1.2, 1.0, 0.95, 0.92, 0.91, 0.905, 0.902, 0.901, 0.9]
FALLING = [1.5, 1.4, 1.3, 1.2, 1.1, 1.0, 0.9, 0.8, 0.7, 0.6]
REFERENCE = """
Stage-1 Best results: Train Loss: 1.1005 | Val Loss: 1.3094 | Train Acc: 85.70% | Val Acc: 72.50%
Stage-2 Best results: Train Loss: 0.7060 | Val Loss: 1.0932 | Train Acc: 100.00% | Val Acc: 86.20%
"""


def draws(count: int = 3, losses: Sequence[float] = FLAT, **second: float) -> list[GateDraw]:
    first = {TRAIN_LOSS: 1.0, VAL_LOSS: 1.1, TRAIN_ACC: 0.7, VAL_ACC: 0.6}
    better = {TRAIN_LOSS: 0.8, VAL_LOSS: 0.9, TRAIN_ACC: 0.85, VAL_ACC: 0.7}
    better |= {current(name.replace("_", "/")): value for name, value in second.items()}
    return [
        GateDraw(draw=str(n), first=first, second=better, val_loss=losses) for n in range(count)
    ]


def states(gate: Gate) -> dict[str, str]:
    return {reading.name: reading.state for reading in gate.readings}


def test_the_reference_users_own_lines_are_memorising_and_confirmation_only() -> None:
    gate = read_gate(parse_best_lines(REFERENCE), T)
    assert gate.tags["gate.memorising"] == "true"
    assert gate.tags["gate.prior"] == "confirmation_only"
    assert gate.tags["gate.optimization_stabilized"] == "unknown"
    assert gate.tags["gate.consistent_gains"] == "unknown"
    assert gate.tags["gate.headroom"] == "true"


def test_a_rise_of_as_much_as_is_wanted_counts_however_it_is_written() -> None:
    for hits in range(100, 190):  # of 200 images, one image more: 0.5 points
        [draw] = draws(1)
        first = {**draw.first, VAL_ACC: hits / 200}
        second = {**draw.second, VAL_ACC: (hits + 1) / 200}
        gate = read_gate([replace(draw, first=first, second=second)], T)
        assert states(gate)["headroom"] == "true", hits


def test_a_healthy_stage_2_is_promising_and_not_stopped() -> None:
    gate = read_gate(draws(), T)
    assert gate.prior == "promising"
    assert states(gate) == {
        "optimization_stabilized": "true",
        "consistent_gains": "true",
        "headroom": "true",
        "memorising": "false",
    }
    gate.enforce()


@pytest.mark.parametrize(
    ("given", "name", "state"),
    [
        (draws(2), "consistent_gains", "unknown"),
        (draws(2, val_acc=0.5), "consistent_gains", "false"),
        ([*draws(2), *draws(1, val_acc=0.6)], "consistent_gains", "false"),
        (draws(losses=FALLING), "optimization_stabilized", "false"),
        (draws(losses=[]), "optimization_stabilized", "unknown"),
        (draws(val_acc=0.98), "headroom", "false"),
        (draws(val_acc=0.604), "headroom", "false"),
    ],
)
def test_one_unmet_condition_makes_it_not_yet_and_stops_stage_3(
    given: list[GateDraw], name: str, state: str
) -> None:
    gate = read_gate(given, T)
    assert states(gate)[name] == state
    assert gate.prior == "not_yet"
    with pytest.raises(GateError, match="not_yet"):
        gate.enforce()


@pytest.mark.parametrize(
    ("second", "state"),
    [
        ({"train_acc": 0.995, "train_loss": 0.1, "val_loss": 0.9}, "true"),
        ({"train_acc": 0.99, "train_loss": 0.1, "val_loss": 0.9}, "false"),
        ({"train_acc": 1.0, "train_loss": 0.8, "val_loss": 0.9}, "false"),
    ],
)
def test_memorising_needs_full_accuracy_and_a_loss_that_stays_high(
    second: dict[str, float], state: str
) -> None:
    gate = read_gate(draws(**second), T)
    assert states(gate)["memorising"] == state
    assert (gate.prior == "confirmation_only") == (state == "true")


def test_memorising_is_what_most_draws_do() -> None:
    memorises = {"train_acc": 1.0, "train_loss": 0.1}
    assert read_gate([*draws(2), *draws(1, **memorises)], T).prior == "promising"
    assert read_gate([*draws(1), *draws(2, **memorises)], T).prior == "confirmation_only"


@pytest.mark.parametrize(
    ("losses", "span"),
    [
        ([9.0, 1.0, 1.1], 0.1),  # at least two epochs
        ([9.0] * 8 + [1.0, 1.2], 0.2),
        ([9.0] * 12 + [1.0, 1.5, 1.2], 0.5),  # three of fifteen
        ([1.0, 1.0, float("nan")], float("inf")),
        ([1.0, 0.0], float("inf")),
    ],
)
def test_the_last_fifth(losses: list[float], span: float) -> None:
    assert last_fifth_span(losses) == pytest.approx(span)


def test_lines_of_several_draws_are_read_draw_after_draw() -> None:
    read = parse_best_lines(REFERENCE + REFERENCE.replace("86.20", "70.00"))
    assert [pair.second[VAL_ACC] for pair in read] == pytest.approx([0.862, 0.7])
    assert states(read_gate(read, T))["consistent_gains"] == "false"


def test_a_loss_that_exploded_is_read_as_it_was_printed() -> None:
    [pair] = parse_best_lines(REFERENCE.replace("1.3094", "1.7e+29"))
    assert pair.first[VAL_LOSS] == 1.7e29


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (REFERENCE + REFERENCE.splitlines()[2], "1 lines of stage 1 and 2 of stage 2"),
        (REFERENCE.replace("86.20", "186.20"), r"Stage-2: accuracy 186\.2% is above 100%"),
        (REFERENCE.splitlines()[1], "no line `Stage-2"),
        ("nothing of the kind", "no line `Stage-1"),
    ],
)
def test_lines_that_cannot_be_paired_or_true_are_refused(text: str, message: str) -> None:
    with pytest.raises(GateError, match=message):
        parse_best_lines(text)


def test_too_few_draws_are_told_from_a_stage_2_that_does_not_gain() -> None:
    with pytest.raises(GateError, match="run stage 2 on 3 draws or more first"):
        read_gate(draws(2), T).enforce()
    with pytest.raises(GateError, match="improve stage 2 first"):
        read_gate(draws(2, val_acc=0.5), T).enforce()


def planted(tracking: Tracking, draw: int, seed: int, **more: str) -> str:
    """A stage-2 run whose parent is gone; its id."""
    tags = {"kind": "stage", "stage": "2", "recipe_key": "one", POOL: "all", "parent_run_id": "x"}
    tags |= {"draw": str(draw), "seed": str(seed), "settings": '{"stage2.epochs": 2}'}
    tags |= more
    with tracking.run(f"draw {draw} seed {seed}", tags, target=False) as log:
        log.metrics({PARENT_VAL_ACC: 0.5, SELECTED_EPOCH: 1})
        log.metrics({at_best(name): 0.6 for name in EPOCH_METRICS})
    return log.run_id


@pytest.mark.parametrize(
    ("asked", "read"),
    [
        ((0, 5), {(0, 5), (1, 6), (2, 7)}),  # moved with the draw
        ((0, 6), {(0, 6), (1, 6), (2, 3)}),  # the same seed; neither, so the lowest
        ((1, 7), {(0, 6), (1, 7), (2, 7)}),
    ],
)
def test_the_gate_counts_draws_that_have_other_seeds_and_no_draw_twice(
    store: Path, asked: tuple[int, int], read: set[tuple[int, int]]
) -> None:
    """Of a draw's runs that with the same seed counts, or else as `decide` deals seeds."""
    tracking = Tracking.connect()
    dealt = [(0, 5), (0, 6), (1, 7), (1, 6), (1, 4), (2, 7), (2, 3)]
    ids = {key: planted(tracking, *key) for key in dealt}
    planted(tracking, 3, 5, settings="{")  # damaged: nobody's siblings
    tracking.writing(planted(tracking, 4, 5)).tags({"seed": "x"})
    _, found = gate_of_run(tracking, tracking.get(ids[asked]), T, lambda _: None)
    assert [pair.draw for pair in found] == ["0", "1", "2"]
    assert {key for key, i in ids.items() if "gate.prior" in tracking.get(i).tags} == read


@pytest.mark.parametrize("prior", ["promising", "confirmation_only", "not_yet"])
def test_the_gate_tells_how_recorded_cases_that_began_so_ended(prior: str) -> None:
    with CASES.open(encoding="utf-8", newline="") as file:
        alike = [row for row in csv.DictReader(file) if row["gate"] == prior]
    won = sum(row["verdict"] == "justified" for row in alike)
    told = (
        f"in {won} of {len(alike)} recorded cases"
        if alike
        else "no decision that this project has recorded"
    )
    assert told in cases_like(prior)


def test_the_report_tells_of_the_cases() -> None:
    gate = read_gate(draws(), T)
    assert cases_like(gate.prior) in report_markdown(gate, draws(), "here")


@pytest.mark.parametrize(
    ("sizes", "proposed"),
    [
        ({"train_per_class": "2", "val_per_class": "2"}, "-e stage2"),
        ({"train_per_class": "6", "val_per_class": "6"}, "-e decide"),  # all 12 of a class
        ({"train_per_class": "5", "val_per_class": "3"}, "-e decide"),
        ({"train_per_class": "auto", "val_per_class": "auto"}, "-e decide"),
    ],
)
def test_another_draw_is_proposed_only_where_the_images_give_one(
    sizes: dict[str, str], proposed: str, store: Path, image_folder: Path
) -> None:
    gate = read_gate(draws(1), T)
    assert (gate.prior, gate.tags["gate.consistent_gains"]) == ("not_yet", "unknown")
    settings = load_settings({"data": str(image_folder), "cache_dir": str(store), **sizes})
    line = _next(gate, draws(1), settings)
    assert proposed in line
    assert ("draw=1" in line) == (proposed == "-e stage2")
    entry_point, options = typed_in(line)
    if entry_point == "decide":  # which can be asked: there are test images
        plan = ENTRY_POINTS["decide"].plan(ENTRY_POINTS["decide"].read(options))
        assert source_of(plan.treatment.settings).test is not None


def test_the_proposed_stage_2_is_of_the_same_recipe(store: Path, image_folder: Path) -> None:
    own = {"data": str(image_folder), "train_per_class": "2", "val_per_class": "2", "seed": "4"}
    own |= {"epochs": "3", "patience": "2", "norm_stats": "source", "stage2.lr": "0.01"}
    settings = load_settings({**own, "cache_dir": str(store)})
    line = _next(read_gate(draws(1), T), draws(1), settings)
    again = load_settings(typed_in(line)[1], target=2)
    assert again.draw == 1
    assert again.stages[:2] == settings.stages[:2]
    assert again.model_copy(update={"draw": 0, "stages": settings.stages}) == settings


def test_lines_may_lie_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "lines.txt").write_text("none")
    with pytest.raises(GateError, match="Stage-1 Best results"):
        _draws_in("~/lines.txt")
    with pytest.raises(GateError, match=r"lines=~/nosuch.txt: cannot be read"):
        _draws_in("~/nosuch.txt")
