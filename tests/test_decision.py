"""What a decision's page shows, from numbers alone: nothing is trained, no network is built."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from pipeline.comparing.arms import TunedArm, decide_plan
from pipeline.comparing.decision import Beside, Decision, verdict_of
from pipeline.comparing.effects import differences_of, effects_of, minus
from pipeline.comparing.pages.decision import (
    _one_a_draw,
    command_of,
    next_of,
    page_of,
    stage0_ahead,
)
from pipeline.comparing.pairs.draws import Pool
from pipeline.comparing.pairs.results import (
    ArmResult,
    Pair,
    label_of,
    pair_keys,
    resolution_pp,
)
from pipeline.comparing.pairs.runner import PairRunner
from pipeline.data.inspection.overlap import Counts
from pipeline.entries.pairs.recommendation import _on_all_images, recommended
from pipeline.errors import DataError
from pipeline.runs.floor import Floor
from pipeline.settings.run import Settings
from pipeline.tracking import RunView
from pipeline.training.stage0 import KNN, LOGREG
from tests.helpers import make_images, planned_epochs, request_of, typed_in
from tests.reports import tables_of_markdown

PRESET = {"preset": "cifar10_small", "looks": "2", "threshold": "0.98", "train_per_class": "10"}
UP_SIDE_DOWN = {"treatment": "stage2_continued", "control": "three_stage"}


IMAGES = 100
WORTH_PP = 1.0


def result(acc: float, seconds: float = 3.0, trained: int = 1000) -> ArmResult:
    return ArmResult(
        run_id="a-run",
        val=acc + 0.02,
        test=acc,
        training_s=seconds,
        prefix_s=1.0,
        parameters_trained=trained,
        peak_mib=10.0,
        correct=np.arange(IMAGES) < round(IMAGES * acc),
    )


def decision(both: tuple[ArmResult, ArmResult] | None = None, **options: str) -> Decision:
    """A decision after two equal pairs; `options`: what was typed."""
    plan = decide_plan(request_of("decide", {**PRESET, **options}))
    both = both or (result(0.8), result(0.7))
    pool = Pool(looks=plan.decide.design.looks, sentence="pairs are disjoint draws")
    keys = pair_keys(pool, plan.treatment.settings, plan.decide.seeds)
    pairs = tuple(Pair(key, *both) for key in keys)
    names = [str(label) for label in range(10)]
    return Decision(
        asked=plan,
        treatment=plan.treatment,
        control=plan.control,
        design=plan.decide.design,
        pool=pool,
        pairs=pairs,
        verdict=verdict_of(
            pairs, plan.decide.design, pool, plan.decide.metric, WORTH_PP, plan.decide.seeds
        ),
        beside={},
        test=Counts(images=IMAGES, copies=0, seen=0),
        worth_pp=WORTH_PP,
        effects=effects_of(pairs, make_images(IMAGES), names),
        classes=10,
        images=10 * int(plan.treatment.settings.train_per_class),
        tuned=(),
        operations=(3e12, 1e12),
        pair_s=30.0,
        at_once=1,
        wall_s=60.0,
    )


def options_again(made: Decision) -> dict[str, str]:
    """The options in the command line that makes a decision again."""
    return typed_in(command_of(made))[1]


@pytest.mark.parametrize("name", ["off", "mine"])
def test_the_command_says_what_is_registered(name: str) -> None:
    assert options_again(decision(register_as=name))["register_as"] == name
    assert "register_as" not in options_again(decision())


def test_the_command_has_what_the_control_alone_was_given() -> None:
    again = options_again(decision(**{"control.lr": "1e-4", "control.norm": "keep"}))
    assert float(again["control.lr"]) == 1e-4
    assert again["control.norm"] == "keep"
    assert not [key for key in options_again(decision()) if key.startswith("control.")]


def test_the_page_says_at_which_probability_the_end_of_the_pool_is_judged() -> None:
    made = decision()
    assert "or 160 pairs, of 0.996 after another number" in report(made)
    end = replace(made, design=replace(made.design, end=2))
    assert "or 160 pairs and after the last that the pool holds, of 0.996" in report(end)


def test_the_page_promises_5_percent_of_errors_only_where_the_threshold_gives_them() -> None:
    promise = "at most 5% of verdicts are wrong"
    assert promise in report(decision(threshold="0.99"))
    assert promise not in report(decision(threshold="0.95"))


def test_odds_below_a_looks_own_threshold_are_not_rounded_up_to_it() -> None:
    made = decision(looks="7", threshold="0.99")  # no look of the grid: 0.998 is asked for
    known = made.verdict.posterior
    assert known
    (look,) = made.verdict.looks
    shy = replace(look, posterior=replace(known, p_above=0.9978), state="inconclusive")
    made = replace(made, verdict=replace(made.verdict, looks=(shy,), state="inconclusive"))
    row = next(line for line in report(made).splitlines() if line.startswith("| 7 |"))
    assert "| 0.997 |" in row


def test_an_arm_for_show_that_diverged_is_called_so() -> None:
    made = decision()
    beside = Beside(arm=made.control, gains_pp=(1.5, -70.0), diverged=(False, True))
    assert "| +1.50 -70.00 (diverged) |" in report(replace(made, beside={"full": beside}))


@pytest.mark.parametrize(
    ("metric", "worth"), [("acc", 1.0), ("balanced_acc", 5.0), ("macro_f1", 5.0)]
)
def test_an_image_of_the_smallest_class_is_worth_most_where_classes_count_alike(
    metric: str, worth: float
) -> None:
    labels = np.repeat([0, 2], [90, 10])  # of class 1 there is no test image
    assert resolution_pp(labels, metric) == worth
    assert resolution_pp(np.repeat([0, 1], 50), metric) == 1.0


def test_a_pair_is_called_the_same_everywhere() -> None:
    assert [label_of(n, 3) for n in range(6)] == ["1.1", "1.2", "1.3", "2.1", "2.2", "2.3"]
    keys = decision(seeds="2").pairs
    runner = cast("PairRunner", SimpleNamespace(called="draw", seeds=2))
    names = [PairRunner.name_of(runner, pair.key) for pair in keys]
    assert names == ["draw 1.1", "draw 1.2", "draw 2.1", "draw 2.2"]


def test_the_model_on_all_images_is_of_the_first_pair_that_did_not_diverge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `refit` on the decision's run would make it: of that pair's draw and seed."""
    asked: list[Settings] = []

    def made(_: object, __: object, settings: Settings, *___: object, **____: object) -> None:
        asked.append(settings)
        raise DataError("enough is known")

    monkeypatch.setattr("pipeline.entries.pairs.recommendation.refit_and_describe", made)
    open_ = decision()
    keys = [replace(pair.key, draw=7 + pair.key.number, seed=40) for pair in open_.pairs]
    pairs = tuple(replace(p, key=key) for p, key in zip(open_.pairs, keys, strict=True))
    lost = replace(result(0.0), diverged=True)
    arms = (open_.treatment, open_.control)
    done = {0: (lost, lost), 1: (result(0.8), result(0.7))}
    runner = cast("PairRunner", SimpleNamespace(arms=arms, done=done, tracking=None, say=print))
    found = recommended(replace(open_, pairs=pairs), "a-decision")
    assert _on_all_images(replace(open_, pairs=pairs), open_.asked, runner, found) is None
    assert [(one.draw, one.seed) for one in asked] == [(8, 40)]


def test_a_question_is_the_one_of_earlier_versions_unless_another_metric_is_asked_for() -> None:
    assert decision().question == "3b5cf2afd95217c0"
    assert decision(metric="acc").question == "3b5cf2afd95217c0"
    assert decision(metric="macro_f1").question not in ("3b5cf2afd95217c0", "480b27868fe9ffbe")


def unlike(acc: float, seed: int) -> ArmResult:
    """Right on other images than `result(acc)`."""
    correct = np.random.default_rng(seed).permutation(IMAGES) < round(IMAGES * acc)
    return replace(result(acc), correct=correct)


def test_an_open_decision_says_what_would_settle_it_and_what_that_costs() -> None:
    made = decision(rope_pp="0", metric="macro_f1", looks="5")
    differ = [unlike(0.66 + 0.2 * (k.key.number % 2), k.key.number) for k in made.pairs]
    pairs = tuple(replace(p, treatment=one) for p, one in zip(made.pairs, differ, strict=True))
    found = verdict_of(pairs, made.design, made.pool, made.metric, WORTH_PP)
    made = replace(made, pairs=pairs, verdict=found)
    assert made.verdict.state == "inconclusive"
    more = re.search(r"about (\d+) more pairs \(about (\d+) min here\)", made.outlook)
    assert more
    assert int(more[2]) == pytest.approx(int(more[1]) / 2, abs=0.6)
    assert f"-P looks=5,{5 + int(more[1])} goes on from these pairs" in made.outlook
    assert made.tags["verdict.outlook"] == made.outlook
    assert made.outlook[1:] in report(made)
    small = replace(made, pool=replace(made.pool, most=5))
    assert "the pool holds 5: fewer images a class" in small.outlook


def test_stage_0_ahead_of_both_arms_is_one_line_with_the_numbers() -> None:
    floor = Floor(
        chosen={KNN: 3, LOGREG: 0.1},
        val={KNN: 0.9, LOGREG: 0.9},
        test={KNN: 0.7, LOGREG: 0.85},
        balanced={"test": {KNN: 0.7, LOGREG: 0.75}},
    )
    made = replace(decision(), floor=floor)
    line = stage0_ahead(made)
    assert line.startswith("! logistic regression (C 0.1) on the frozen features")
    assert "85.00% on the test images" in line
    assert "stage 3 80.00% and stage 2 continued 70.00%" in line
    assert "-P tune=on" in line
    assert line in report(made)
    level = replace(made, floor=replace(floor, test={KNN: 0.7, LOGREG: 0.8}))
    assert stage0_ahead(level) == ""
    assert "! logistic" not in report(level)
    assert stage0_ahead(replace(decision(metric="balanced_acc"), floor=floor)) == ""
    assert stage0_ahead(decision()) == ""


def test_of_a_few_pairs_nothing_is_foretold() -> None:
    made = decision((unlike(0.72, 1), unlike(0.7, 2)), looks="3")
    assert made.verdict.state == "inconclusive"
    assert made.outlook.startswith("3 pairs tell too little")
    assert "-P looks=3,5,10,20" in made.outlook


def test_the_next_command_is_what_was_typed_with_the_looks_that_the_outlook_names() -> None:
    made = decision((unlike(0.72, 1), unlike(0.7, 2)), looks="3", cache_dir="/c")
    words = {**PRESET, "looks": "3,5,10,20", "cache_dir": "/c"}
    assert typed_in(next_of(made)) == ("decide", words)
    assert next_of(decision(rope_pp="0", threshold="0.51")) == ""


def test_a_command_that_goes_on_names_the_storage_of_the_studies() -> None:
    both, asked = (unlike(0.72, 1), unlike(0.7, 2)), {"looks": "3", "tune": "on"}
    made = decision(both, storage="sqlite:///team.db", **asked)
    for command in (next_of(made), command_of(made)):
        assert "-P storage=sqlite:///team.db" in command
    secret = decision(both, storage="postgresql://ann:secret@host/optuna", **asked)
    for command in (next_of(secret), command_of(secret)):
        assert "storage" not in command


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rope_pp": "0", "threshold": "0.51"}, "since its gain is established"),
        ({"rope_pp": "40"}, "does not gain enough to be worth it"),
        ({"looks": "3"}, "has not been shown to be better"),
    ],
)
def test_a_recommendation_says_why(options: dict[str, str], words: str) -> None:
    apart = (unlike(0.72, 1), unlike(0.7, 2)) if "looks" in options else ()
    made = decision(*([apart] if apart else []), **options)  # type: ignore[arg-type]
    assert words in made.why
    assert f"Recommended: {made.recommended.words}, since " in report(made)


def test_a_decision_that_is_settled_has_no_outlook() -> None:
    made = decision(rope_pp="0", threshold="0.51")
    assert (made.verdict.state, made.outlook) == ("justified", "")
    assert made.tags["verdict.outlook"] == "settled"


def test_seeds_of_a_draw_are_one_pair_of_the_verdict() -> None:
    made = decision(seeds="3", looks="4")
    assert len(made.pairs) == 12
    known = made.verdict.posterior
    assert known
    assert known.pairs == 4
    assert made.sentence.endswith("Each pair is the mean of 3 seeds.")
    assert options_again(made)["seeds"] == "3"
    assert made.labels[:4] == ["1.1", "1.2", "1.3", "2.1"]
    assert made.means_pp == pytest.approx([10.0] * 4)
    assert decision().labels == ["1", "2"]


def test_seeds_of_a_draw_are_one_draw_of_the_gate() -> None:
    runs = [
        RunView(
            run_id=name, name="", status="", tags={"data_sha256": name[0]}, params={}, metrics={}
        )
        for name in ("a1", "a2", "b1", "b2", "c1")
    ]
    assert [run.run_id for run in _one_a_draw(runs)] == ["a1", "b1", "c1"]


def test_gains_of_a_draw_are_averaged_over_its_seeds_image_by_image() -> None:
    keys = pair_keys(Pool(looks=(3,), sentence=""), decision().treatment.settings, 2)
    pairs = [Pair(k, unlike(0.8, 2 * k.number), unlike(0.7, 2 * k.number + 1)) for k in keys]
    table = np.array([minus(pair.treatment, pair.control) for pair in pairs], dtype=float)
    assert differences_of(pairs, 2) == pytest.approx((table[::2] + table[1::2]) / 2)


def test_the_report_says_which_images_are_mended_and_broken_and_what_single_pairs_do() -> None:
    """The treatment is right on images 0 to 79, the control on 0 to 69: ten are mended."""
    made = decision(looks="3")
    assert made.effects["mended"].tolist() == [3] * 10
    assert made.effects["broken"].tolist() == [0] * 10
    assert made.disagreements.loc["all"].tolist() == [10, 0, 10, 0]
    (table,) = (rows for rows in tables_of_markdown(report(made)) if rows[0][0] == "class")
    assert table[-1] == ["all", "10.0", "0.0", "10", "0"]
    assert "Single pairs: gains from +10.00 to +10.00 pp" in report(made)


def test_images_on_which_the_arms_never_disagree_are_left_out() -> None:
    same = decision((result(0.8), result(0.8)))
    assert same.effects.empty
    assert same.disagreements.loc["all"].tolist() == [0, 0, 0, 0]


def test_another_metric_than_accuracy_is_named_and_asked_for_again() -> None:
    made = decision(metric="macro_f1")
    assert made.sentence.startswith("By macro F1: Stage 3 gains")
    assert made.tags["verdict.metric"] == "macro_f1"
    assert options_again(made)["metric"] == "macro_f1"
    assert "metric" not in options_again(decision())
    text = report(made)
    assert "scored by macro F1" in text
    assert "minus test macro F1" in text


def report(made: Decision) -> str:
    marks = {"data_sha256": "d" * 64, "weights_sha256": "w" * 64, "signal.one": "true"}
    run = RunView(
        run_id="a-run", name="stage", status="FINISHED", tags=marks, params={}, metrics={}
    )
    return page_of(made, [run] * len(made.pairs), None, ["a-commit"])


@pytest.mark.parametrize(
    ("val_acc", "shown"),
    [
        (0.85, ["85.00%", "confirmed 80.00%", "optimism gap +5.00 pp", "a-study"]),
        (None, ["trial's run is gone", "confirmed 80.00%", "a-study"]),
    ],
)
def test_the_report_shows_what_the_chosen_trial_promised(
    val_acc: float | None, shown: list[str]
) -> None:
    made = decision(question="stage2")
    val = {} if val_acc is None else {"val_acc": val_acc}
    tuned = TunedArm(arm=made.treatment, val=val, studies={2: "a-study"}, run_ids=("a-run",))
    found = report(replace(made, tuned=(tuned,)))
    (line,) = (line for line in found.splitlines() if line.startswith("Tuning of stage 2: "))
    assert all(words in line for words in shown)
    assert "Tuning of" not in report(made)


@pytest.mark.parametrize(
    ("treatment", "control", "operations", "shown"),
    [
        ((0.8, 4.0, 2000), (0.7, 3.0, 1000), (3e12, 1e12), "+0.1 s, +100 parameters"),
        # blocks that are not released cost operations even where the clock saw none
        ((0.8, 3.0, 1000), (0.7, 3.0, 1000), (3e12, 1e12), "+0.0 s, +0 parameters"),
        ((0.8, 3.0, 1000), (0.7, 4.0, 2000), (1e12, 3e12), "costs nothing more"),
        ((0.8, 3.1, 1000), (0.7, 3.0, 2000), (1e12, 3e12), "+0.0 s, -100 parameters"),
        ((0.7, 3.0, 1000), (0.8, 3.0, 1000), (1e12, 3e12), "Nothing was gained"),
    ],
)
def test_a_gain_costs_nothing_only_where_nothing_at_all_costs_more(
    treatment: tuple[float, float, int],
    control: tuple[float, float, int],
    operations: tuple[float, float],
    shown: str,
) -> None:
    made = decision((result(*treatment), result(*control)))
    assert shown in report(replace(made, operations=operations))


def test_the_costs_of_both_arms_are_means_over_pairs() -> None:
    made = decision()
    first, second = made.pairs
    other = replace(second, treatment=result(0.6, seconds=5.0))
    ours, theirs = replace(made, pairs=(first, other)).costs
    assert (ours.arm, ours.training_s, ours.parameters_trained) == (made.treatment, 4.0, 1000)
    assert (ours.val, ours.test) == pytest.approx((0.72, 0.7))
    assert ours.optimism_pp == pytest.approx(2)
    assert (ours.operations, theirs.operations) == (3e12, 1e12)
    assert (theirs.arm, theirs.training_s) == (made.control, 3.0)


@pytest.mark.parametrize(
    ("words", "treatment", "control"),
    [
        ({"question": "stage3"}, "stage 3", "stage 2 continued"),
        ({"question": "stage2"}, "stage 2", "stage 1 continued"),
        ({"treatment": "three_stage", "control": "stage2_continued"}, "stage 3", ""),
        (
            {"treatment": "three_stage", "control": "stage1_continued"},
            "training in three stages",
            "",
        ),
        ({"treatment": "three_stage", "control": "full"}, "training in three stages", ""),
        ({"treatment": "two_stage", "control": "full"}, "training in two stages", ""),
        (
            {"treatment": "three_stage", "control": "head_only", "stage1.lr": "0.01"},
            "training in three stages",
            "",
        ),
        (UP_SIDE_DOWN, "stage 2 continued", "training in three stages"),
    ],
)
def test_a_stage_is_what_is_judged_only_against_the_one_before_continued(
    words: dict[str, str], treatment: str, control: str
) -> None:
    made = decision(**words)
    again = decide_plan(request_of("decide", options_again(made)))
    assert (again.treatment, again.control) == (made.treatment, made.control)
    shown = report(made)
    assert shown.startswith(f"# Is {treatment} justified?")
    assert f"{treatment[:1].upper()}{treatment[1:]} gains +10.0 pp against {control}" in shown


def test_the_report_says_how_many_optimizer_steps_both_arms_had() -> None:
    words = {"treatment": "three_stage", "control": "full", "epochs": "5"}
    made = decision(**words, **{"stage1.batch_size": "20", "stage3.batch_size": "20"})
    assert (planned_epochs(made.treatment), planned_epochs(made.control)) != (15, 15)
    assert "Both arms had 60 optimizer steps" in report(made)


def test_images_and_seeds_are_shown_pair_by_pair_and_nowhere_else() -> None:
    made = decision()
    pairs = pair_keys(replace(made.pool, resampled=True), made.treatment.settings)
    both = zip(made.pairs, pairs, strict=True)
    shown = report(replace(made, pairs=tuple(replace(pair, key=key) for pair, key in both)))
    tables = tables_of_markdown(shown)
    (table,) = (rows for rows in tables if rows[0][:2] == ["pair", "data_seed"])
    assert [row[:5] for row in table[1:]] == [
        ["1", "1", "0", "0", "80.00%"],
        ["2", "2", "0", "1", "80.00%"],
    ]
    (settings,) = (rows for rows in tables if rows[0] == ["setting", "value"])
    named = {row[0] for row in settings}
    assert {"backbone", "weights", "data"} <= named
    assert not {"draw", "data_seed", "seed"} & named


def test_equal_gains_are_equal_though_accuracies_have_six_digits() -> None:
    gains = set()
    for hits in (1, 200, 419, 598):
        both = (result(float(f"{(hits + 2) / 600:.6g}")), result(float(f"{hits / 600:.6g}")))
        gains |= set(decision(both).gains_pp)
    assert gains == {0.333}
