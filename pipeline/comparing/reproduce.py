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
    options = {key: value for key, value in values.items() if value != "" and value is not False}
    options |= dict(asked.general)
    for arm_stage in range(1, decision.treatment.last + 1):
        training = settings.training(arm_stage).model_dump()
        # what is tuned must stay open
        kept = asked.explicit[arm_stage] if asked.decide.tune else training.keys()
        options |= {f"stage{arm_stage}.{key}": training[key] for key in training if key in kept}
    options |= {
        "rope_pp": decision.design.rope_pp,
        "looks": ",".join(map(str, decision.design.looks)),
        "threshold": decision.design.threshold,
    }
    for key in ("beside", "register_as"):
        if given := getattr(asked.decide, key):
            options[key] = given
    if decision.metric != DEFAULT_SHARE:
        options["metric"] = decision.metric
    if asked.decide.tune:
        tune = asked.tune
        options |= {"tune": "on", "n_trials": tune.n_trials, "draws": tune.draws}
        options |= {"objective": tune.objective, "margin": tune.margin}
    if decision.treatment.is_stage:
        options["question"] = f"stage{decision.treatment.last}"
    else:
        options |= {
            "treatment": decision.treatment.settings.schedule,
            "control": decision.control.settings.schedule,
        }
    return command_line("decide", options)
