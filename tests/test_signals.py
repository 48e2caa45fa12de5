"""Every signal against numbers worked out by hand, and a planted case for each state."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from pipeline.settings.thresholds import Thresholds
from pipeline.signals.readings import (
    Sibling,
    Signal,
    State,
    accuracy_gain,
    instability,
    loss_rise,
    loss_stability,
    no_early_spike,
    numbers_of,
    read_signals,
    saturation,
)
from pipeline.signals.scored import Scored, paired
from pipeline.stats.spread import variance_test
from pipeline.tracking.history import History
from pipeline.tracking.keys import TRAIN_ACC, TRAIN_LOSS, VAL_LOSS

T = Thresholds()


def scored(correct: Sequence[int], nll: Sequence[float] | None = None) -> Scored:
    names = tuple(f"image{i}" for i in range(len(correct)))
    values = [0.5] * len(correct) if nll is None else nll
    return Scored(
        images=names,
        labels=np.ones(len(correct)),
        predicted=np.array(correct),
        nll=np.array(values, dtype=float),
    )


def history(
    train_acc: Sequence[float] = (0.5,) * 8,
    val_loss: Sequence[float] = (1.0,) * 8,
    planned: int | None = None,
) -> History:
    count = len(train_acc)
    columns = ([0.5] * count, train_acc, val_loss)
    names = (TRAIN_LOSS, TRAIN_ACC, VAL_LOSS)
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return History(planned=planned or count, rows=rows)


# The accuracy gain


def test_the_gain_its_error_and_its_bound_are_those_worked_out_by_hand() -> None:
    # differences 1, 1, 1, 0, -1: mean 0.4, variance (3 * 0.36 + 0.16 + 1.96) / 4 = 0.8
    run, parent = scored([1, 1, 1, 1, 0]), scored([0, 0, 0, 1, 1])
    signal = accuracy_gain(run, parent, T)
    error = math.sqrt(0.8 / 5)
    assert signal.numbers["acc_gain"] == pytest.approx(0.4)
    assert signal.numbers["acc_gain_se"] == pytest.approx(error)
    assert signal.numbers["acc_gain_bound"] == pytest.approx(0.4 - 1.5332062740589439 * error)
    assert signal.state == "false"  # 0.4 - 0.613


@pytest.mark.parametrize(
    ("gains", "losses", "still", "state"),
    [(30, 10, 60, "true"), (12, 10, 78, "false"), (10, 30, 60, "false"), (5, 0, 95, "true")],
)
def test_a_gain_must_be_larger_than_chance(
    gains: int, losses: int, still: int, state: str
) -> None:
    run = scored([1] * gains + [0] * losses + [1] * still)
    parent = scored([0] * gains + [1] * losses + [1] * still)
    assert accuracy_gain(run, parent, T).state == state


@pytest.mark.parametrize(("gains", "losses", "p"), [(2, 0, 0.25), (4, 0, 0.0625), (3, 1, 0.3125)])
def test_the_odds_of_a_gain_are_those_of_coins(gains: int, losses: int, p: float) -> None:
    """Two images gained and none lost happen in a quarter of cases: whatever n, no gain."""
    run = scored([1] * gains + [0] * losses + [1] * 200)
    parent = scored([0] * gains + [1] * losses + [1] * 200)
    signal = accuracy_gain(run, parent, T)
    assert signal.numbers["acc_gain_p"] == pytest.approx(p)
    assert signal.state == ("true" if p <= 0.1 else "false")


@pytest.mark.parametrize(("parent_epochs", "most"), [(1, 0.1), (10, 0.1)])
def test_the_best_of_ten_epochs_is_no_gain_over_a_parent_that_is_as_good(
    parent_epochs: int, most: float
) -> None:
    """400 runs of ten epochs on 200 images, where each epoch flips a tenth of the images anew."""
    rng = np.random.default_rng(0)

    def best_of(epochs: int) -> np.ndarray:
        right = rng.random(200) < 0.8
        found = []
        for _ in range(epochs):
            right = np.where(rng.random(200) < 0.1, rng.random(200) < 0.8, right)
            found.append(right)
        return max(found, key=np.mean)

    course, fired = history((0.5,) * 10, (1.0,) * 10), []
    for _ in range(400):
        parent, run = scored(best_of(parent_epochs) * 1), scored(best_of(10) * 1)
        read = read_signals(course, run, parent, T, has_parent=True, parent_epochs=parent_epochs)
        fired.append(states(read)["positive.val_acc_gain"] == "true")
    assert np.mean(fired) <= most
    if parent_epochs == 1:  # as many choices as the parent would be taken for granted
        blind = [accuracy_gain(scored(best_of(10) * 1), scored(best_of(1) * 1), T) for _ in fired]
        assert np.mean([signal.state == "true" for signal in blind]) > 2 * most


@pytest.mark.parametrize(
    ("epochs", "spike", "saturates"),
    [
        (1, "unknown", "unknown"),
        (2, "false", "unknown"),
        (3, "false", "unknown"),
        (4, "false", "true"),
    ],
)
def test_when_in_its_first_epoch_a_run_saturates_is_not_seen(
    epochs: int, spike: str, saturates: str
) -> None:
    course = history((1.0,) * epochs, (1.0,) * epochs)
    assert no_early_spike(course, T).state == spike
    assert saturation(course, T).state == saturates


def test_no_change_at_all_is_no_gain_and_a_stable_loss() -> None:
    same = scored([1, 0, 1, 1], [0.1, 2.0, 0.3, 0.2])
    assert accuracy_gain(same, same, T).state == "false"
    assert loss_stability(same, same).state == "true"


def test_scores_are_paired_by_image_whatever_their_order() -> None:
    run = scored([1, 0, 1], [0.1, 0.9, 0.3])
    turned = replace(
        run, images=run.images[::-1], predicted=run.predicted[::-1], nll=run.nll[::-1]
    )
    twice = replace(scored([1, 0], [0.1, 0.9]), images=("a", "a"))  # in order
    for one, other in ((run, turned), (twice, twice)):
        for column in paired(one, other).values():
            assert column.tolist() == [0] * len(one.images)
    others = replace(run, images=("x", "y", "z"))
    with pytest.raises(ValueError, match="not scored on the same images"):
        paired(run, others)


# The loss against the parent's


@pytest.mark.parametrize(
    ("shift", "stable", "rises"),
    [(-0.5, "true", "false"), (0.2, "true", "false"), (0.3, "false", "true")],
)
def test_the_loss_may_rise_by_one_standard_error(shift: float, stable: str, rises: str) -> None:
    # differences shift +- 0.5 in equal number: standard error 0.5 * sqrt(4 / 3) / 2 = 0.289
    parent = scored([1] * 4, [1.0, 1.0, 1.0, 1.0])
    run = scored([1] * 4, [1.5 + shift, 0.5 + shift, 1.5 + shift, 0.5 + shift])
    assert loss_stability(run, parent).state == stable
    assert loss_stability(run, parent).numbers["nll_change_se"] == pytest.approx(0.288675)
    for worse, ending in ((0.2, "(s.e. 0.289), a rise within noise"), (0.4, "(s.e. 0.289)")):
        later = replace(run, nll=run.nll - run.nll.mean() + parent.nll.mean() + worse)
        found = loss_stability(later, parent)
        assert found.sentence.endswith(ending)
        assert found.state == ("true" if "noise" in ending else "false")
    signal = loss_rise(history(), run, parent, T, has_parent=True)
    assert signal.state == rises


@pytest.mark.parametrize(
    ("losses", "rise", "state"),
    [
        ((2.0, 1.0, 1.04), 0.04, "false"),
        ((2.0, 1.0, 1.06), 0.06, "true"),
        ((3.0, 2.0, 1.0), 0.0, "false"),
        ((1.0, 2.0, 1.0), 0.0, "false"),
        ((1.0, 1.0, math.nan), math.nan, "true"),
    ],
)
def test_the_loss_may_end_five_percent_above_its_minimum(
    losses: tuple[float, ...], rise: float, state: str
) -> None:
    signal = loss_rise(history((0.5,) * 3, losses), scored([1]), None, T, has_parent=False)
    assert signal.state == state
    assert signal.numbers == ({} if math.isnan(rise) else {"loss_rise": pytest.approx(rise)})


def test_without_the_parents_scores_a_rise_of_its_own_still_counts() -> None:
    calm, risen = history(), history(val_loss=(1.0,) * 7 + (1.5,))
    assert loss_rise(calm, scored([1, 1]), None, T, has_parent=True).state == "unknown"
    assert loss_rise(risen, scored([1, 1]), None, T, has_parent=True).state == "true"


def test_a_rise_from_nothing_is_a_rise() -> None:
    found = loss_rise(history((0.5, 1.0), (0.0, 0.5)), scored([1]), None, T, has_parent=False)
    assert found.state == "true"
    assert "ended at 0.500 nats, above its minimum of 0.000 nats" in found.sentence
    assert "loss_rise" not in found.numbers


def test_a_rise_is_not_seen_in_one_epoch_but_against_the_stage_before() -> None:
    one = history((0.5,), (1.0,))
    first = loss_rise(one, scored([1]), None, T, has_parent=False)
    assert (first.state, first.sentence) == (
        "unknown",
        "validation loss was 1.000 nats after its one epoch",
    )
    later = loss_rise(
        one, scored([1, 1], [1.0, 1.0]), scored([1, 1], [0.5, 0.4]), T, has_parent=True
    )
    assert later.state == "true"
    assert "one epoch" in later.sentence
    assert "above the stage before" in later.sentence


# Saturation


@pytest.mark.parametrize(
    ("epoch", "saturates", "no_spike"),
    [
        (1, "true", "false"),
        (2, "true", "false"),  # a quarter of eight
        (3, "false", "false"),
        (4, "false", "false"),  # half
        (5, "false", "true"),
        (None, "false", "true"),
    ],
)
def test_when_training_accuracy_saturates(
    epoch: int | None, saturates: str, no_spike: str
) -> None:
    accuracies = [0.99 if epoch and number >= epoch else 0.98 for number in range(1, 9)]
    assert saturation(history(accuracies), T).state == saturates
    assert no_early_spike(history(accuracies), T).state == no_spike


def test_epochs_are_counted_against_the_plan_and_from_the_first_saturation() -> None:
    stopped = saturation(history([0.5, 0.99], [1.0, 1.0], planned=8), T)
    assert (stopped.state, stopped.numbers) == ("true", {"saturation_share": 0.25})
    assert saturation(history([0.5, 0.99], [1.0, 1.0]), T).state == "false"
    assert saturation(history([1.0, *[0.5] * 7]), T).state == "true"  # it falls again


# Spread over siblings


def test_the_variance_test_is_pitmans() -> None:
    x, y = [70.0, 74.0, 66.0, 71.0], [70.0, 71.0, 69.5, 70.2]
    total, difference = np.add(x, y), np.subtract(x, y)
    r, two_sided = stats.pearsonr(total, difference)
    assert r > 0
    assert variance_test(x, y) == pytest.approx(two_sided / 2)
    assert variance_test(y, x) == pytest.approx(1 - two_sided / 2)


@pytest.mark.parametrize(
    ("x", "y", "p"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 0.5),
        ([5.0, 6.0, 7.0], [1.0, 2.0, 3.0], 0.5),  # the same spread, shifted
        ([3.0, 2.0, 1.0], [1.0, 2.0, 3.0], 0.5),
        ([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], 0.0),
        ([1.0, 2.0, 3.0], [2.0, 4.0, 6.0], 1.0),
        ([2.0, 2.0, 2.0], [2.0, 2.0, 2.0], 0.5),
    ],
)
def test_variances_without_noise(x: list[float], y: list[float], p: float) -> None:
    assert variance_test(x, y) == pytest.approx(p, abs=1e-6)


def test_the_variance_test_rejects_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(2000, 5))
    pairs = [(b + rng.normal(size=5), b + rng.normal(size=5)) for b in base]
    rejected = np.mean([variance_test(x, y) < 0.1 for x, y in pairs])
    assert 0.08 < rejected < 0.12


def siblings(
    own: Sequence[float], before: Sequence[float], parents: str = "abcd"
) -> list[Sibling]:
    return [Sibling(*one) for one in zip(own, before, parents, strict=False)]


@pytest.mark.parametrize(
    ("parents", "words"),
    [
        ("", ".*: 3 runs that differ only in these are needed; so far: 0 runs"),
        ("a", ".*: 3 runs that differ only in these are needed; so far: 1 run"),
        ("ab", ".*: 3 runs that differ only in these are needed; so far: 2 runs"),
        ("aaa", ".*with a parent each, are needed; so far: 3 runs of 1 parent"),
        ("aabab", ".*with a parent each, are needed; so far: 5 runs of 2 parents"),
    ],
)
def test_fewer_than_three_siblings_of_other_parents_say_nothing(parents: str, words: str) -> None:
    accs = (0.70, 0.74, 0.78, 0.72, 0.60)
    signal = instability(siblings(accs, [0.6] * 5, parents), T)
    assert signal.state == "unknown"
    assert re.fullmatch(words, signal.sentence)
    assert signal.numbers == {"siblings": len(set(parents))}


def test_siblings_that_spread_more_than_their_parents() -> None:
    own, parents = [0.60, 0.75, 0.68, 0.80], [0.70, 0.71, 0.70, 0.71]
    signal = instability(siblings(own, parents), T)
    assert signal.state == "true"
    assert signal.numbers["spread"] == pytest.approx(100 * np.std(own, ddof=1))
    assert instability(siblings(parents, own), T).state == "false"
    # of siblings with one parent the first counts
    more = siblings([*own, 0.1, 0.99], [*parents, 0.70, 0.71], "abcdad")
    assert instability(more, T) == signal


@pytest.mark.parametrize(
    ("own", "before", "words"),
    [
        ([0.90, 0.90, 0.93], [0.90, 0.90, 0.90], "those of the stage before tie"),
        ([0.90, 0.90, 0.90], [0.90, 0.92, 0.95], "accuracies of the runs tie"),
    ],
)
def test_accuracies_that_tie_show_no_instability(
    own: list[float], before: list[float], words: str
) -> None:
    """One image of thirty in one run is no evidence: the test would call it p = 0."""
    signal = instability(siblings(own, before), T)
    assert signal.state == "unknown"
    assert words in signal.sentence


# All of them


def test_a_signal_whose_number_has_the_name_of_anothers_does_not_overwrite_it() -> None:
    """A run's metrics are `signal/<number>`, whatever the signal."""
    run, parent = scored([1] * 6 + [0] * 4), scored([1] * 5 + [0] * 5)
    course = history((0.99,) * 8)
    read = read_signals(course, run, parent, T, has_parent=True)
    spread = instability(siblings([0.60, 0.75, 0.68], [0.70, 0.71, 0.70]), T)
    every = [signal for signal in read if signal.name != spread.name] + [spread]
    assert numbers_of(every).keys() == {name for signal in every for name in signal.numbers}
    assert numbers_of(read)["saturation_share"] == 1 / 8  # both of its signals say the same
    other = Signal.of("positive.mine", True, "another", acc_gain=0.5)
    with pytest.raises(AssertionError, match=r"positive\.mine: another signal has .* acc_gain"):
        numbers_of([*read, other])


OF_FIRST = {"positive.no_early_spike", "negative.train_acc_saturates", "negative.val_loss_rises"}
OF_LATER = {
    "positive.val_acc_gain",
    "positive.val_loss_stable",
    "negative.unstable_across_runs",
}


def states(signals: Sequence[Signal]) -> dict[str, str]:
    """States of the signals that are tested here; a signal that is added has tests of its own."""
    return {s.name: s.state for s in signals if s.name in OF_FIRST | OF_LATER}


FALLING, RISING = np.linspace(1.0, 0.3, 8).tolist(), np.linspace(1.0, 3.0, 8).tolist()


@pytest.mark.parametrize(
    ("better", "run_nll", "course", "true"),
    [
        (  # it memorises
            0,
            3.0,
            history([0.9, *[1.0] * 7], RISING),
            {"negative.train_acc_saturates", "negative.val_loss_rises"},
        ),
        (  # it learns
            30,
            0.3,
            history(np.linspace(0.5, 0.95, 8).tolist(), FALLING),
            {"positive.val_acc_gain", "positive.val_loss_stable", "positive.no_early_spike"},
        ),
    ],
)
def test_a_run_that_memorises_and_one_that_learns_are_read_as_such(
    better: int, run_nll: float, course: History, true: set[str]
) -> None:
    run = scored([1] * (60 + better) + [0] * (40 - better), [run_nll] * 100)
    parent = scored([1] * 60 + [0] * 40, [1.0] * 100)
    read = states(read_signals(course, run, parent, T, has_parent=True))
    assert {name for name, state in read.items() if state == "true"} == true
    assert [name for name, state in read.items() if state == "unknown"] == [
        "negative.unstable_across_runs"
    ]


def test_a_first_stage_has_no_parent_and_a_lost_parent_is_unknown() -> None:
    first = states(read_signals(history(), scored([1, 0]), None, T, has_parent=False))
    assert set(first) == OF_FIRST
    lost = states(read_signals(history(), scored([1, 0]), None, T, has_parent=True))
    unknown = {name for name, state in lost.items() if state == "unknown"}
    assert unknown == OF_LATER | {"negative.val_loss_rises"}


@pytest.mark.parametrize(
    ("threshold", "value", "name", "state"),
    [
        ("signal_saturation_acc", 0.4, "negative.train_acc_saturates", "true"),
        ("signal_confidence", 0.999, "positive.val_acc_gain", "false"),
        ("signal_loss_rise", 0.0, "negative.val_loss_rises", "true"),
    ],
)
def test_a_threshold_can_be_moved(threshold: str, value: float, name: str, state: str) -> None:
    run, parent = scored([1] * 6 + [0] * 94), scored([0] * 100)
    line = history(val_loss=(1.0,) * 7 + (1.01,))
    before = states(read_signals(line, run, parent, T, has_parent=True))
    moved = Thresholds(**{threshold: value})
    after = states(read_signals(line, run, parent, moved, has_parent=True))
    assert before[name] != state
    assert after[name] == state
    assert {k: v for k, v in after.items() if k != name and "spike" not in k} == {
        k: v for k, v in before.items() if k != name and "spike" not in k
    }


@pytest.mark.parametrize(
    ("name", "state", "mark"),
    [
        ("positive.val_acc_gain", "true", "+"),
        ("positive.val_acc_gain", "false", "!"),
        ("negative.val_loss_rises", "true", "!"),
        ("negative.val_loss_rises", "false", "+"),
        ("negative.val_loss_rises", "unknown", "?"),
        ("positive.no_early_spike", "false", "·"),  # tells of the rate: speaks for nothing
        ("negative.train_acc_saturates", "true", "·"),
        ("negative.unstable_across_runs", "true", "!"),
        ("negative.unstable_across_runs", "false", "·"),
    ],
)
def test_marks_are_given_where_a_signal_was_right(name: str, state: State, mark: str) -> None:
    assert Signal(name=name, state=state, sentence="").mark == mark
