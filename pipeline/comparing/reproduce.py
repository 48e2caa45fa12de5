"""The command line that makes a decision again."""

from __future__ import annotations

from pipeline.comparing.decision import Decision
from pipeline.runs.command_line import command_line
from pipeline.settings.run import INHERITED_KEYS
from pipeline.stats.metrics import DEFAULT_SHARE


def command_of(decision: Decision) -> str:
    """A command line that makes the same decision: what was asked, spelled out."""
    asked = decision.asked
    settings = asked.treatment.settings
    keys = ["preset", *INHERITED_KEYS, "seed", "views", "precision"]
    keys.remove("schedule")  # each arm has its own
    values = {key: getattr(settings, key) for key in keys}
    said = {key: value for key, value in values.items() if value != "" and value is not False}
    said |= dict(asked.of_all)
    for arm_stage in range(1, decision.treatment.last + 1):
        training = settings.training(arm_stage).model_dump()
        # what is tuned must stay open
        kept = asked.said[arm_stage] if asked.decide.tune else training.keys()
        said |= {f"stage{arm_stage}.{key}": training[key] for key in training if key in kept}
    said |= {
        "rope_pp": decision.design.rope_pp,
        "looks": ",".join(map(str, decision.design.looks)),
        "threshold": decision.design.threshold,
    }
    for key in ("beside", "register_as"):
        if given := getattr(asked.decide, key):
            said[key] = given
    if decision.metric != DEFAULT_SHARE:
        said["metric"] = decision.metric
    if asked.decide.tune:
        tune = asked.tune
        said |= {"tune": "on", "n_trials": tune.n_trials, "draws": tune.draws}
        said |= {"objective": tune.objective, "margin": tune.margin}
    if decision.treatment.is_stage:
        said["question"] = f"stage{decision.treatment.last}"
    else:
        said |= {"treatment": decision.treatment.name, "control": decision.control.name}
    return command_line("decide", said)
