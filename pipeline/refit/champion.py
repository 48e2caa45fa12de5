"""The champion: the version of a registered model that is recommended, described as what it is.

In: the runs of a recommended recipe, or one of them. Out: a version in MLflow's registry with the
alias `champion`, a model card on its run, and lines that say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from pipeline.data.sampling.whole import Scope
from pipeline.refit.card import CARD, model_card, overall, test_predictions
from pipeline.refit.recipe import Recipe
from pipeline.refit.recommended import Recommended
from pipeline.refit.train import Refit, refit
from pipeline.settings.entry import usable_name
from pipeline.settings.run import Settings
from pipeline.signals.evidence import as_far_as_allowed
from pipeline.system.text import count_of
from pipeline.tracking import ModelVersion, RunView, Tracking, keys
from pipeline.tracking.registry import ALIAS

Say = Callable[[str], None]


def default_name(settings: Settings) -> str:
    """The registered model's name where none was given."""
    return usable_name(f"{settings.data_name}-{settings.backbone}")


def refit_and_describe(
    tracking: Tracking,
    recommended: Recommended,
    settings: Settings,
    scope: Scope,
    command: str,
    say: Say,
    *,
    nested_under: str | None = None,
) -> tuple[Refit, str]:
    """The recommended recipe on all images, with its model card; the card as a description, too.

    `command`: what to type for the same model.

    Raises:
        PipelineError: see `refit`.
    """
    runs = [tracking.get(run_id) for run_id in recommended.run_ids]
    recipe = Recipe(
        settings=settings,
        last=runs[0].number(keys.STAGE),
        words=recommended.words,
        runs=runs,
    )
    made = refit(tracking, recipe, scope, say, nested_under=nested_under)
    if is_of_a_decision(made, recommended):
        description = made.run.tags.get(keys.NOTE, "")
    else:
        card, description = model_card(tracking, made, recommended, command)
        log = tracking.writing(made.run.run_id)
        with as_far_as_allowed(made.run, say):
            log.text(card, CARD)
        log.tags({**recommended.tags, keys.NOTE: description})
    accuracy = overall(test_predictions(tracking, made))
    if accuracy.images:
        balanced = made.run.metrics.get(keys.TEST["balanced_acc"], math.nan)
        apart = abs(balanced - accuracy.right / accuracy.images) > 1e-5  # stored to six digits
        also = f", balanced {balanced:.1%}" if apart else ""
        say(f"refit: test accuracy {accuracy.words} on {count_of(accuracy.images, 'image')}{also}")
    else:
        say("refit: no test split, so that nothing is known of unseen images")
    return made, description


def is_of_a_decision(made: Refit, recommended: Recommended) -> bool:
    """Whether a decision has recommended this very model, and nobody asked for one now.

    What the decision said of the model stays.
    """
    return keys.DECISION_RUN_ID in made.run.tags and not recommended.decision_run_id


def register_champion(
    tracking: Tracking,
    run: RunView,
    name: str,
    *,
    words: str,
    why: str = "",
    description: str,
    tags: Mapping[str, str],
    say: Say,
    gives_way: bool = False,
) -> str:
    """Register a run's model under the alias; returns the model's address in the registry.

    `gives_way`: a decision's champion keeps the alias: nothing has recommended this model.
    """
    address = f"models:/{name}@{ALIAS}"
    version = ModelVersion(
        uri=run.tags[keys.MODEL_URI],
        alias=ALIAS,
        description=description,
        tags={**tags, "recipe": words},
        gives_way_to=keys.DECISION_RUN_ID if gives_way else "",
    )
    registered = tracking.register(name, version)
    if registered.gave_way and registered.replaced:
        number, marks = registered.replaced
        say(
            f"registered: {words}, version {registered.number} of {name} (run {run.run_id}); "
            f"{ALIAS} stays version {number}, which decision {marks[keys.DECISION_RUN_ID]} "
            f"recommends: -P register_as={name} moves it"
        )
        return f"models:/{name}/{registered.number}"
    chosen = "registered" if gives_way else "recommended"
    reason = f", {why}" if why else ""
    say(f"{chosen}: {words}{reason}; {address} is version {registered.number} (run {run.run_id})")
    if registered.replaced:
        number, marks = registered.replaced
        of = marks.get(keys.DECISION_RUN_ID)
        say(
            f"note: until now {ALIAS} was version {number}, of "
            f"{f'decision {of}' if of else 'no decision'}; pass -P register_as=<another name> to "
            "keep both"
        )
    return address
