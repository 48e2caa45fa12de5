"""Command lines that make a result again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from pipeline.data.sources import NAMES
from pipeline.decision import Decision
from pipeline.settings import INHERITED_KEYS
from pipeline.weights import NAMES as WEIGHTS


def command_line(entry_point: str, said: Mapping[str, object]) -> str:
    """What to type; paths are absolute, since `mlflow run` starts in the project's folder."""
    values = {key: str(value) for key, value in said.items()}
    for key, known in (("data", NAMES), ("weights", WEIGHTS), ("config", ())):
        if values.get(key) and values[key] not in known:
            values[key] = str(Path(values[key]).expanduser().absolute())
    words = " ".join(f"-P {key}={shlex.quote(value)}" for key, value in values.items())
    return f"mlflow run . -e {entry_point} --env-manager local {words}"


def command_of(decision: Decision) -> str:
    """A command line that makes the same decision: what was asked, spelled out."""
    asked = decision.asked
    settings = asked.treatment.settings
    keys = ["preset", *INHERITED_KEYS, "seed", "views", "precision"]
    keys.remove("schedule")  # each arm has its own
    said = {key: getattr(settings, key) for key in keys} | dict(asked.of_all)
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
    if asked.decide.beside:
        said["beside"] = asked.decide.beside
    if asked.decide.tune:
        tune = asked.tune
        said |= {"tune": "on", "n_trials": tune.n_trials, "draws": tune.draws}
        said |= {"objective": tune.objective, "margin": tune.margin}
    if decision.treatment.name == "three_stage" and decision.control.name.endswith("_continued"):
        said["question"] = f"stage{decision.treatment.last}"
    else:
        said |= {"treatment": decision.treatment.name, "control": decision.control.name}
    return command_line("decide", said)
