"""Entry point refit: the recipe of a stage run or of a decision, trained once more on all images.

In: the id of a finished stage run, whose chain is the recipe, or of a decision, whose recommended
arm is. Out: a run of kind `refit`, the champion in the registry.
"""

from __future__ import annotations

from pipeline.refit.champion import (
    default_name,
    is_of_a_decision,
    refit_and_describe,
    register_champion,
)
from pipeline.refit.recommended import recommended_by
from pipeline.refit.train import Refit
from pipeline.runs.command import Command
from pipeline.runs.lineage import check_places, settings_of
from pipeline.runs.messages.command_line import command_line
from pipeline.settings.entry import RefitSettings
from pipeline.tracking import Tracking, keys


def refit_entry(command: Command, plan: RefitSettings) -> Refit:
    """Entry point refit.

    Raises:
        LineageError: neither a finished stage run nor a decision.
    """
    tracking, say = Tracking.connect("refit"), command.say
    with tracking.explained():
        recommended = recommended_by(tracking, plan.run_id)
        first = tracking.get(recommended.run_ids[0])
        tracking.follow(first)
        settings = command.request.settings(settings_of(first), first.run_id)
        check_places(settings, first)
        typed = command_line("refit", command.request.typed)
        made, description = refit_and_describe(
            tracking, recommended, settings, plan.refit, typed, say
        )
        run_id = made.run.run_id
        tracking.name_launched(f"refit · found run {run_id}", keys.REFIT, run_id)
        pool = made.session.draw.pool
        if first.tags.get(keys.POOL, pool) != pool:
            say(
                f"note: the images at data={settings.data} are not those that run "
                f"{first.run_id} was dealt from: the refit is of what is there now"
            )
        if plan.register_as != "off":
            register_champion(
                tracking,
                made.run,
                plan.register_as or default_name(settings),
                words=recommended.words,
                why=recommended.why,
                description=description,
                tags={} if is_of_a_decision(made, recommended) else recommended.tags,
                say=say,
                gives_way=not plan.register_as and not recommended.decision_run_id,
            )
        say(tracking.how_to_browse)
    return made
