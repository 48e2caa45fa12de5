"""After a verdict: the recommended arm's runs, and the model to use, in the registry.

In: a `Decision`. Out: a `Recommended` on its run, and a registered model: the recommended recipe
on all images, or the model of the first pair where that is not wanted, or where these images
cannot be read, trained on or held in memory.
"""

from __future__ import annotations

from pipeline.comparing.arms import Comparison
from pipeline.comparing.decision import Decision
from pipeline.comparing.pages.decision import command_of
from pipeline.comparing.pairs.results import PairKey
from pipeline.comparing.pairs.runner import PairRunner
from pipeline.errors import DataError, OutOfMemoryError, TrainingError
from pipeline.refit.champion import default_name, refit_and_describe, register_champion
from pipeline.refit.recommended import Recommended
from pipeline.stats.metrics import METRICS
from pipeline.tracking import RunView
from pipeline.tracking.keys import CHAMPION_RUN_ID, MODEL_URI, VERDICT
from pipeline.training.out_of_memory import explained


def recommended(decision: Decision, run_id: str) -> Recommended:
    """The recommended arm's runs, first pair first; a run that diverged is left out."""
    is_treatment = decision.recommended is decision.treatment
    results = [p.treatment if is_treatment else p.control for p in decision.pairs]
    treatments = [p.treatment for p in decision.pairs]
    whole = [result.run_id for result in treatments if not result.diverged]
    return Recommended(
        words=decision.recommended.words,
        run_ids=tuple(result.run_id for result in results if not result.diverged),
        compared_run_id=(whole or [treatments[0].run_id])[0],
        sentence=decision.sentence,
        decision_run_id=run_id,
        images=round(decision.images / decision.classes),
        why=decision.why,
    )


def register_recommended(
    decision: Decision, plan: Comparison, runner: PairRunner, found: Recommended
) -> None:
    """The recommended arm on all images, or the model of the first pair, in the registry."""
    if plan.decide.register_as == "off":
        return
    if not found.run_ids:
        runner.say(f"note: every run of {found.words} diverged: no model is registered")
        return
    model = _on_all_images(decision, plan, runner, found) or _of_a_pair(decision, runner, found)
    run, description = model
    if MODEL_URI not in run.tags:  # another person's run, whose files may not be written
        runner.say(f"note: run {run.run_id} has no served model: no model is registered")
        return
    tracking, settings = runner.tracking, decision.recommended.settings
    address = register_champion(
        tracking,
        run,
        plan.decide.register_as or default_name(settings),
        words=found.words,
        why=found.why,
        description=description,
        tags={**found.tags, VERDICT: decision.verdict.state},
        say=runner.say,
    )
    log = tracking.writing(found.decision_run_id)
    log.tags({"champion": address, CHAMPION_RUN_ID: run.run_id})


def _on_all_images(
    decision: Decision, plan: Comparison, runner: PairRunner, found: Recommended
) -> tuple[RunView, str] | None:
    """The recommended arm's run on all images, described; None where there is to be none."""
    if plan.decide.refit == "off":
        return None
    try:
        with explained():
            made, description = refit_and_describe(
                runner.tracking,
                found,
                _first_key(decision, runner).apply(decision.recommended.settings),
                plan.decide.refit,
                command_of(decision),
                runner.say,
                nested_under=found.decision_run_id,
            )
    except (DataError, TrainingError, OutOfMemoryError) as err:  # more images, or more steps
        runner.say(f"note: not trained on all images: {err}")
        return None
    return made.run, description


def _first_key(decision: Decision, runner: PairRunner) -> PairKey:
    """The first pair in which the recommended arm did not diverge."""
    at = runner.arms.index(decision.recommended)
    return next(p.key for p in decision.pairs if not runner.done[p.key.number][at].diverged)


def _of_a_pair(decision: Decision, runner: PairRunner, found: Recommended) -> tuple[RunView, str]:
    """The recommended arm's run of the first pair in which it did not diverge, described."""
    arm, key = decision.recommended, _first_key(decision, runner)
    result = runner.completed(key, arm)
    words = METRICS[decision.metric].words
    description = (
        f"**{decision.sentence}**\n\nRecommended: {arm.words}, {decision.why}. This model, of "
        f"{runner.name_of(key)} alone, reached {result.test:.2%} {words} on the test images. "
        f"Decision: run {found.decision_run_id}."
    )
    return runner.tracking.get(result.run_id), description
