"""What a study came to: pictures, a table of trials, the best settings as a file to use.

In: a study. Out: artifacts, tags and a description on its MLflow run, and lines for the terminal.
The pictures are Optuna's own.
"""

from __future__ import annotations

import warnings
from typing import Any

import optuna
import yaml
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from pipeline.reporting.page import to_markdown
from pipeline.runs.messages.command_line import command_line, stage_entry_point
from pipeline.system.text import as_sentence, count_of, numbered
from pipeline.tracking import Tracking
from pipeline.tracking.keys import NOTE
from pipeline.tuning.storage.access import experiments_known, for_optunas_commands
from pipeline.tuning.storage.trial_state import REASON, RUN_ID, default_of, outcomes, queued_again
from pipeline.tuning.study import CHOICE, Study, shown_settings

_PICTURES = {
    "history": "plot_optimization_history",
    "importances": "plot_param_importances",
    "parallel_coordinate": "plot_parallel_coordinate",
    "slice": "plot_slice",
}


def log_study(study: Study, tracking: Tracking, run_id: str) -> None:
    """Log the study as it stands; safe to repeat, and to do from several processes."""
    best, chosen = study.best, study.chosen
    log = tracking.writing(run_id)
    log.text(_trials_csv(study), "trials.csv")
    if best is not None and chosen is not None:
        log.text(_chosen_yaml(study, chosen), "best.yaml")
        taken = {f"chosen.{key}": str(value) for key, value in _settings(study, chosen).items()}
        log.tags({**taken, "choice": study.optuna.user_attrs.get(CHOICE, "")})
        for name, trial in (("best", best), ("chosen", chosen)):
            numbers = {f"{name}/value": trial.value or 0.0, f"{name}/trial": trial.number}
            log.metrics(numbers, step=study.finished())
            trial_run_id = str(trial.user_attrs.get(RUN_ID, ""))
            log.tags({f"{name}_trial_run_id": trial_run_id})
        for name, figure in _pictures(study.optuna).items():
            log.figure(figure, f"figures/{name}.png")
    counts = outcomes(study.trials)
    log.metrics({f"trials/{name}": count for name, count in counts.items()})
    note = to_markdown(
        "study",
        study=study,
        stage=study.spec.stage,
        summary=as_sentence(summary(study)),
        draws=numbered("draw", study.spec.draws),
        command=command_line(stage_entry_point(study.spec.stage.number), {"tuned": "true"}),
        where=for_optunas_commands(study.storage.url),
    )
    log.tags({NOTE: note})


def log_trial(study: Study, tracking: Tracking, run_id: str, number: int) -> None:
    """A trial's value, and the best so far, as curves of the study's run."""
    trial, best = study.trials[number], study.best
    log = tracking.writing(run_id)
    if best and best.value is not None:  # trials end in another order than that of their numbers
        log.metrics({"best/value": best.value}, step=study.finished())
    if trial.value is not None and trial.state == TrialState.COMPLETE:
        log.metrics({"trial/value": trial.value}, step=trial.number)


def _trials_csv(study: Study) -> str:
    """A row a trial: number, state, value, settings, seconds, reason."""
    import pandas as pd

    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            study.spec.objective: trial.value if trial.state == TrialState.COMPLETE else None,
            **trial.params,
            "wall_s": trial.duration.total_seconds() if trial.duration else None,
            "reason": trial.user_attrs.get(REASON, ""),
            "run_id": trial.user_attrs.get(RUN_ID, ""),
        }
        for trial in study.trials
    ]
    return pd.DataFrame(rows).to_csv(index=False)


def _settings(study: Study, trial: FrozenTrial) -> dict[str, object]:
    """A trial's settings by key of the space; a trial from outside the space has the defaults."""
    return {**study.spec.defaults, **trial.params}


def _chosen_yaml(study: Study, chosen: FrozenTrial) -> str:
    """All stages' settings up to the tuned one, in the form that `-P config=best.yaml` reads."""
    number = study.spec.stage.number
    head = f"# {study.name}, trial {chosen.number}: {study.spec.objective} {chosen.value:.4f}\n"
    values = {key: value for key, value in study.spec.fixed.items() if "." in key}
    values |= {f"stage{number}.{key}": v for key, v in _settings(study, chosen).items()}
    return head + yaml.safe_dump(dict(sorted(values.items())), sort_keys=False)


def _pictures(study: optuna.Study) -> dict[str, Figure]:
    """Optuna's pictures of a study; without those that too few trials allow no picture of."""
    import matplotlib as mpl

    mpl.use("Agg")
    import optuna.visualization.matplotlib as drawn
    from matplotlib import pyplot as plt

    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    figures: dict[str, Figure] = {}
    for name, function in _PICTURES.items():
        if name != "history" and (len(complete) < 2 or not any(t.params for t in complete)):
            continue
        with experiments_known(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of few trials, or of one value only
            try:
                axes: Any = getattr(drawn, function)(study)
            except (ValueError, RuntimeError):
                continue  # importances of trials that all have one value
        figure = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
        figure.set_size_inches(max(8.0, figure.get_size_inches()[0]), 5.0)
        figures[name] = figure
        plt.close(figure)
    return figures


def summary(study: Study) -> str:
    """One line: how many trials of what kind, the best and the defaults beside it."""
    trials, best = study.trials, study.best
    counts, stopped = outcomes(trials), ""
    if counts["interrupted"]:
        again = len(queued_again(trials))
        stopped = f"; {counts['interrupted']} interrupted, {again} of them queued again"
    line = (
        f"stage {study.spec.stage.number}: {count_of(study.finished(), 'trial')} "
        f"({counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed"
        f"{stopped})"
    )
    if best is None:
        return f"{line}: {study.failure or 'none has a value yet'}"
    default, choice = default_of(trials), study.optuna.user_attrs.get(CHOICE)
    against = f" (defaults {default.value:.4f})" if default else ""
    return (
        f"{line}: best {study.spec.objective} {best.value:.4f}{against}, trial {best.number}: "
        f"{shown_settings(best.params)}{f'; {choice}' if choice else ''}"
    )
