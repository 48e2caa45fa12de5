"""Entry point decide: is more freedom justified? Pairs of runs, look by look, to a verdict.

In: a `Comparison`. Out: a `Decision`, its report on an MLflow run of its own, tags on the runs
that the decision rests on, and the recommended model in the registry. Finished runs are found by
content: an interrupted decision goes on where it stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure

from pipeline.comparing.arms import (
    Comparison,
    TunedArm,
    at_equal_steps,
    differences,
    own_stages,
    with_own_settings,
)
from pipeline.comparing.cost import equal_steps, operations_of
from pipeline.comparing.decision import Beside, Decision, verdict_of
from pipeline.comparing.effects import changes_of, effects_of
from pipeline.comparing.estimate import Estimate, estimate
from pipeline.comparing.pages.decision import log_decision
from pipeline.comparing.pairs.results import ArmResult, Pair, Results, label_of
from pipeline.comparing.pairs.runner import PairRunner
from pipeline.comparing.pairs.tasks import run_all, run_extra
from pipeline.data.sampling.whole import count_whole
from pipeline.entries.pairs.recommendation import recommended, register_recommended
from pipeline.entries.pairs.setup import PairSetup
from pipeline.reporting.figures import best_effort
from pipeline.runs.command import Command
from pipeline.runs.findings.mistakes import CHANGES, changes_picture
from pipeline.runs.messages.words import minutes
from pipeline.settings.describe import without_thresholds
from pipeline.settings.run import plain_values
from pipeline.signals.evidence import refresh_siblings
from pipeline.stats.design import Design
from pipeline.stats.metrics import DEFAULT_SHARE
from pipeline.stats.operating import characteristics_text, operating_characteristics
from pipeline.stats.simulated import World, image_characteristics
from pipeline.stats.verdict import Verdict
from pipeline.system.progress import doing
from pipeline.system.text import count_of
from pipeline.tracking import RunLog
from pipeline.tracking.keys import NAME

TRUE_GAINS_PP = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0)


def decide_entry(command: Command, plan: Comparison) -> Decision:
    """Entry point decide."""
    started, asked, settings = time.perf_counter(), plan, plan.treatment.settings
    with PairSetup.open(
        command,
        [settings],
        plan.decide.design.looks,
        reserved=plan.tune.draws if plan.decide.tune else 0,
        asked="looks",
        tasks=plan.tune,
        seeds=plan.decide.seeds,
    ) as setup:
        design = replace(plan.decide.design, looks=setup.pool.looks, end=setup.pool.most)
        setup.check(setup.keys[: design.looks[0] * setup.seeds])
        cost = _forecast(plan, setup, design)
        name = f"decision · {setup.source.name} · {plan.treatment.words} or {plan.control.words}"
        params = {**without_thresholds(plain_values(settings)), **plan.decide.model_dump()}
        with setup.run("decision", name, params) as log:
            plan, tuned = _tuned(plan, setup)
            decision, runner = _decided(plan, asked, setup, design, log, tuned, cost)
            decision = replace(decision, wall_s=time.perf_counter() - started)
            refresh_siblings(setup.tracking, command.say)
            changes = _changes(decision, setup, runner)
            with doing("writing the report"):
                log_decision(decision, log, setup.tracking, command.say, changes)
            log.tags({NAME: f"{decision.verdict.state.replace('_', ' ')} · {name}"})
            found_runs = recommended(decision, log.run_id)
            found_runs.keep(log)
        register_recommended(decision, plan, runner, found_runs)  # the decision is finished
    return decision


def _decided(
    plan: Comparison,
    asked: Comparison,
    setup: PairSetup,
    design: Design,
    log: RunLog,
    tuned: tuple[TunedArm, ...],
    cost: Estimate,
) -> tuple[Decision, PairRunner]:
    """The pairs, the verdict, and all that the report says of them."""
    pairs, found, runner = _run_pairs(plan, setup, design, log)
    beside = _run_extra_arms(plan, setup, runner, pairs)
    classes, images = len(setup.source.class_names), setup.images
    decision = Decision(
        asked=asked,
        treatment=plan.treatment,
        control=plan.control,
        design=design,
        pool=setup.pool,
        pairs=tuple(pairs),
        verdict=found,
        beside=beside,
        test=runner.overlap.counts,
        classes=classes,
        effects=effects_of(pairs, runner.test, setup.source.class_names),
        tuned=tuned,
        images=images,
        operations=(
            operations_of(plan.treatment, classes, images),
            operations_of(plan.control, classes, images),
        ),
        worth_pp=setup.worth_pp(plan.decide.metric),
        pair_s=cost.mean_s,
        at_once=cost.at_once,
        wall_s=0.0,
        floor=runner.floor(pairs[0].key, plan.treatment),
    )
    return decision, runner


def _changes(decision: Decision, setup: PairSetup, runner: PairRunner) -> dict[str, Figure]:
    """A picture of the test images that the treatment mends and breaks, where any are known."""
    pictures: dict[str, Figure] = {}
    with best_effort("the picture of mended images", setup.command.say):
        mended, broken = changes_of(decision.pairs, runner.test, setup.source.class_names)
        title = f"what {decision.treatment.words} mends and breaks of {decision.control.words}"
        if figure := changes_picture(title, runner.test.pixels, mended, broken):
            pictures[CHANGES] = figure
    return pictures


def _forecast(plan: Comparison, setup: PairSetup, design: Design) -> Estimate:
    """Tell how often the design is right and what it costs, before anything is spent."""
    say, arms, images = setup.command.say, (plan.treatment, plan.control), len(setup.overlap.test)
    compared = f"{plan.treatment.words} against {plan.control.words},"
    setup.announce(compared, arms, plan.decide.metric)
    if apart := differences(*arms):
        say(f"note: the arms' last stages differ in {', '.join(apart)}: a gain is of that, too")
    worth = _told_worth(plan, setup, design)
    spread, shared = plan.decide.sd_pp, setup.pool.correction
    assumed = f"gains spread by sd_pp={spread:g}"
    simulating = doing("working out how often this design is right")
    if plan.decide.metric == DEFAULT_SHARE:
        world = World(images=images, spread_pp=spread, correction=shared).with_room()
        assumed += f" and arms disagree on {world.disagree:.0%} of {images} test images"
        with simulating:
            rows = image_characteristics(design, world, TRUE_GAINS_PP)
    else:
        rows = operating_characteristics(
            design,
            spread * math.sqrt(1 + shared),
            TRUE_GAINS_PP,
            correction=shared,
            resolution_pp=worth,
        )
    say(
        f"\nwhat this design can tell, if {assumed} (share of decisions; a gain counts above "
        f"{design.rope_pp:g} pp):"
    )
    say(characteristics_text(rows))
    has_more = setup.pool.most is None or setup.pool.most > design.looks[-1]
    if not rows[["justified", "not justified"]].to_numpy().any() and has_more:
        more = (*design.looks, max(5, 2 * design.looks[-1]))
        say(
            "note: in none of these worlds does this design come to an answer: take more pairs "
            f"(-P looks={','.join(map(str, more))}), more test images, or a larger rope_pp"
        )
    cost = estimate(arms, images, setup.tracking, setup.cluster, setup.seeds)
    new = [(after - before) * setup.seeds for before, after in pairwise((0, *design.looks))]
    times = ", ".join(
        f"{count_of(pairs, 'pair')} {minutes(cost.seconds(*new[: look + 1]))}"
        for look, pairs in enumerate(design.looks)
    )
    tuning = "; tuning is not counted" if plan.decide.tune else ""
    of_seeds = f", with each of {setup.seeds} seeds" if setup.seeds > 1 else ""
    say(
        f"\na pair takes about {cost.mean_s:.0f} s here{cost.beside}{of_seeds}: {times}"
        f"{tuning}; what has been run before costs nothing"
        f"{_refit_in_words(plan, setup, cost)}\n"
    )
    return cost


def _told_worth(plan: Comparison, setup: PairSetup, design: Design) -> float:
    """What one test image is worth, in points; a note where that is more than counts as a gain."""
    worth = setup.worth_pp(plan.decide.metric)
    if worth > design.rope_pp:
        of = "" if plan.decide.metric == DEFAULT_SHARE else " of the smallest class"
        setup.command.say(
            f"note: one test image{of} is worth {worth:.2g} pp, more than the {design.rope_pp:g} "
            "pp that count as a gain: more test images, or a larger rope_pp, would be better"
        )
    return worth


def _refit_in_words(plan: Comparison, setup: PairSetup, cost: Estimate) -> str:
    """What the model to use costs after the verdict; empty where none is trained.

    A pair trains the recommended arm, and more, on one draw.
    """
    scope = plan.decide.refit
    if scope == "off" or plan.decide.register_as == "off":
        return ""
    first = setup.keys[0].apply(plan.treatment.settings)
    count = count_whole(setup.source, first, scope)
    most = minutes((cost.pair_s + cost.draw_s) * count / setup.images)
    return (
        f"; after a verdict the recommended arm is trained once more on {count} images, "
        f"{most} at most (-P refit=off leaves that out)"
    )


def _tuned(plan: Comparison, setup: PairSetup) -> tuple[Comparison, tuple[TunedArm, ...]]:
    """Both arms with the best settings of studies on their own draws, where tuning is asked for.

    The stages that the arms do not share have the same number of trials in all on either side,
    rounded up for the control. The control's steps follow the treatment's; settings that were
    given by hand stay.
    """
    if not plan.decide.tune:
        return plan, ()
    from pipeline.tuning.tune_arm import tune_arm

    last = plan.treatment.last
    treatment = tune_arm(
        setup.command, setup.tracking, plan.tune, plan.treatment, plan.explicit, setup.cluster
    )
    control = at_equal_steps(treatment.arm, plan.control.schedule, plan.request, plan.treatment)
    control = with_own_settings(control, plan.request)
    equal_steps([treatment.arm, control], setup.images)
    fixed = own_stages(plan)
    trials = plan.tune.n_trials * (last - control.last + len(fixed))
    tune = plan.tune.model_copy(update={"n_trials": math.ceil(trials / len(fixed))})
    tuned = tune_arm(setup.command, setup.tracking, tune, control, fixed, setup.cluster)
    schedules = [arm.schedule for arm in plan.extra_arms]
    extra = tuple(at_equal_steps(treatment.arm, one, plan.request) for one in schedules)
    plan = replace(plan, treatment=treatment.arm, control=tuned.arm, extra_arms=extra)
    return plan, (treatment, tuned)


def _run_pairs(
    plan: Comparison, setup: PairSetup, design: Design, log: RunLog
) -> tuple[list[Pair], Verdict, PairRunner]:
    """Pairs up to the look at which the verdict falls, and the verdict."""
    keys, names = setup.keys, (plan.treatment.words, plan.control.words)

    def tell(number: int, pair: str, results: Results) -> str:
        shown = (
            f"{name} {result.test:.2%}{_balanced([result], runner)}"
            for name, result in zip(names, results, strict=True)
        )
        gain_pp = 100 * (results[0].test - results[1].test)
        label = label_of(number, setup.seeds)
        return f"pair {label} ({pair}): {', '.join(shown)}, gain {gain_pp:+.2f} pp"

    arms = (plan.treatment, plan.control)
    runner = setup.runner(arms, setup.overlap, plan.decide.metric, log.run_id, tell)
    pairs: list[Pair] = []
    for look in design.looks:
        results = run_all(runner, keys[: look * setup.seeds], setup.cluster)
        pairs = [Pair(key, *both) for key, both in zip(keys, results, strict=False)]
        metric = plan.decide.metric
        worth = setup.worth_pp(metric)
        found = verdict_of(pairs, design, setup.pool, metric, worth, setup.seeds)
        known = found.posterior
        assert known
        setup.command.say(f"after {count_of(look, 'pair')}: {found.sentence(*names)}")
        numbers = {
            "p_gain": known.p_above,
            "p_inside": known.p_inside,
            "p_harm": known.p_below,
            "mean_gain_pp": known.mean_pp,
        }
        log.metrics({f"look/{key}": value for key, value in numbers.items()}, step=look)
        if found.state != "go_on":
            break
    both = [p.treatment for p in pairs], [p.control for p in pairs]
    words = [f"{n}{_balanced(arm, runner)}" for n, arm in zip(names, both, strict=True)]
    if words != list(names):
        setup.command.say(f"classes counted alike, over all pairs: {', '.join(words)}")
    return pairs, found, runner


def _balanced(results: Sequence[ArmResult], runner: PairRunner) -> str:
    """Mean balanced accuracy in words, where test images of classes are unequal in number."""
    labels = runner.test.labels.numpy()
    sizes = np.bincount(labels)
    there = sizes[sizes > 0]
    if runner.metric != DEFAULT_SHARE or np.ptp(there) == 0:
        return ""
    hits = np.mean([np.bincount(labels, weights=one.correct) for one in results], axis=0)
    return f" (balanced {np.mean(hits[sizes > 0] / there):.2%})"


def _run_extra_arms(
    plan: Comparison, setup: PairSetup, runner: PairRunner, pairs: list[Pair]
) -> dict[str, Beside]:
    """Gains over the control of arms that are reported and not judged, on the first pairs."""
    found: dict[str, Beside] = {}
    for arm in plan.extra_arms if plan.decide.beside else ():
        first, gains = pairs[: plan.decide.beside], []
        results = run_extra(runner, [pair.key for pair in first], arm, setup.cluster)
        for pair, result in zip(first, results, strict=True):
            what = "diverged" if result.diverged else f"{result.test:.2%}"
            runner.say(f"{runner.name_of(pair.key)}, beside: {arm.words} {what}")
            gains.append(100 * (result.test - pair.control.test))
        diverged = tuple(result.diverged for result in results)
        found[arm.name] = Beside(arm=arm, gains_pp=tuple(gains), diverged=diverged)
    return found
